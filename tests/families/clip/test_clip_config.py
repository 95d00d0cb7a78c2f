"""What CLIP's configuration refuses."""

import dataclasses

import pytest
from families.clip.peers import tiny_config

from flava_ds import config as configuration
from flava_ds.config import SourceConfig
from flava_ds.config.bounds import check_bounds
from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve


def test_the_command_line_reaches_the_towers():
    config = resolve("demo_clip", ["--model.activation", "gelu", "--model.text.num-hidden-layers", "3"])
    assert config.model.activation == "gelu" and config.model.text.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("image", {"patch_size": 5}, "image_size 12 is not divisible by patch_size 5"),
        ("image", {"num_attention_heads": 5}, "hidden_size 24 is not divisible by num_attention_heads 5"),
        ("text", {"num_hidden_layers": 0}, "model.text.num_hidden_layers is 0"),
        ("text", {"layer_norm_eps": float("nan")}, "model.text.layer_norm_eps is nan"),
        ("image", {"image_std": (1.0, 0.0, 1.0)}, "image_std"),
        ("image", {"num_channels": 1}, "must be 3"),
    ],
)
def test_shapes_that_cannot_work_are_named(section, changes, message):
    config = tiny_config()
    part = dataclasses.replace(getattr(config.model, section), **changes)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **{section: part}))
    with pytest.raises(ConfigError, match=message):
        check_bounds(config.model, "model")
        config.model.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masked_share": 0.5}, "source 'pairs': masked_share is for masked objectives"),
        ({"image_codes_key": "codes.npy"}, "source 'pairs': image_codes_key is for masked objectives"),
        ({"max_tokens": 33}, "max_tokens 33 must lie between 3 and 32"),
        ({"kind": "text"}, "text batches, as this run's objectives read pair; add"),
    ],
)
def test_sources_that_it_cannot_read_are_named(changes, message):
    config = resolve("demo_clip", [])
    config = dataclasses.replace(config, model=tiny_config().model)
    source = SourceConfig(**({"kind": "pair", "shards": "x", "max_tokens": 16} | changes))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"pairs": source}))
    with pytest.raises(ConfigError, match=message):
        configuration.check(config)
