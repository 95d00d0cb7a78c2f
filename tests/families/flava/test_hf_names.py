"""The name map: complete in both directions, exact to the bit, and strict."""

import dataclasses
import re

import pytest
import torch
from hf.foreign import their_model, their_state
from sample_batches import tiny_config

from flava_ds.config import Config
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.capabilities import PREDICTS, FlavaScorer, offers
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.hf import LAYOUTS
from flava_ds.families.flava.hf_names import flava_entries, huggingface_names
from flava_ds.families.flava.task import build_task
from flava_ds.layouts import check_tensors, to_ours, to_theirs
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.simclr import SimclrConfig


def with_poolers(config: Config) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, poolers=True))


def test_theirs_to_ours_to_theirs_is_exact_and_leaves_nothing_out():
    config = with_poolers(tiny_config())
    state = {name: tensor.detach() for name, tensor in their_state(their_model(config), poolers=True).items()}
    entries = flava_entries(config)
    ours = to_ours(state, entries, "theirs")
    back = to_theirs(ours, entries, "ours")
    assert back.keys() == state.keys()
    assert all(
        back[name].shape == state[name].shape and torch.equal(back[name], state[name]) for name in state
    )
    assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize("poolers", [False, True])
def test_ours_to_theirs_to_ours_is_exact(poolers):
    config = with_poolers(tiny_config()) if poolers else tiny_config()
    state = {name: torch.randn_like(tensor) for name, tensor in build_task(config).state_dict().items()}
    entries = flava_entries(config)
    back = to_ours(to_theirs(state, entries, "ours"), entries, "theirs")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_objectives_of_any_name_are_written_and_offered_by_their_type():
    plain = tiny_config()
    task = build_task(plain)
    names = {name: f"{number}_{name[:2]}" for number, name in enumerate(plain.objectives)}
    config = dataclasses.replace(
        plain,
        objectives={names[name]: own for name, own in plain.objectives.items()}
        | {"mlm": MultimodalMaskedTextConfig(weight=0.0)},
    )
    renamed = build_task(config)
    state = {
        re.sub(r"(?<=^objectives\.)\w+", lambda found: names[found[0]], name): own
        for name, own in task.state_dict().items()
    }
    renamed.load_state_dict(state)
    (settings, tensors), (found, written) = (
        LAYOUTS.write(plain, task.state_dict()),
        LAYOUTS.write(config, state),
    )
    assert settings == found and tensors.keys() == written.keys()
    assert all(torch.equal(tensors[name], written[name]) for name in tensors)
    parts, lacks = offers(renamed, config)
    assert not lacks and {type(own).__name__ for own in parts} > {"PairMatcher", "FlavaScorer"}
    assert [own.predicts for own in parts if isinstance(own, FlavaScorer)] == [frozenset(PREDICTS.values())]
    twice = dataclasses.replace(plain, objectives={**plain.objectives, "more": plain.objectives["mlm"]})
    with pytest.raises(CheckpointError, match="objectives.mlm and objectives.more are both of type mlm"):
        LAYOUTS.write(twice, build_task(twice).state_dict())


def test_heads_of_objectives_that_are_not_flavas_are_left_out_aloud(caplog):
    plain = tiny_config()
    config = dataclasses.replace(plain, objectives={**plain.objectives, "apart": SimclrConfig()})
    state = build_task(config).state_dict()
    settings, tensors = LAYOUTS.write(config, state)
    assert "without the heads of simclr" in caplog.text
    own = {name: tensor for name, tensor in state.items() if not name.startswith("objectives.apart.")}
    assert len(own) < len(state)
    expected, written = LAYOUTS.write(plain, own)
    assert settings == expected and tensors.keys() == written.keys()
    assert all(torch.equal(tensors[name], written[name]) for name in tensors)


def test_no_two_tensors_share_a_name():
    names = [
        name
        for entry in flava_entries(with_poolers(Config(name="base", objectives=flava_objectives())))
        for name in entry.theirs
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        (
            "model.text_encoder.transformer.blocks.11.attention.output.weight",
            ("flava.text_model.encoder.layer.11.attention.output.dense.weight",),
        ),
        (
            "model.text_encoder.transformer.blocks.0.mlp_down.bias",
            ("flava.text_model.encoder.layer.0.output.dense.bias",),
        ),
        (
            "model.image_encoder.patch_embedding.weight",
            ("flava.image_model.embeddings.patch_embeddings.projection.weight",),
        ),
        ("objectives.mmm_image.head.norm.weight", ("mmm_image_head.transform.LayerNorm.weight",)),
        ("objectives.itm.head.pooler.dense.bias", ("itm_head.pooler.dense.bias",)),
        (
            "model.multimodal_encoder.transformer.blocks.3.attention.qkv.bias",
            tuple(
                f"flava.multimodal_model.encoder.layer.3.attention.attention.{part}.bias"
                for part in ("query", "key", "value")
            ),
        ),
    ],
)
def test_names(name, theirs):
    assert huggingface_names(name) == theirs


@pytest.mark.parametrize("name", ["model.new_thing.weight", "objectives.dino.center", "step"])
def test_a_tensor_without_a_counterpart_is_an_error(name):
    with pytest.raises(CheckpointError, match=name):
        huggingface_names(name)


def test_messages_name_the_tensor():
    tensors = {"a.weight": torch.zeros(2, 3), "b": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"FILE: tensor 'a.weights' is missing .*'a.weight'"):
        check_tensors(tensors, {"a.weights": (2, 3), "b": (1,)}, "FILE")
    with pytest.raises(CheckpointError, match="FILE: tensor 'b' is unknown"):
        check_tensors(tensors, {"a.weight": (2, 3)}, "FILE")
    with pytest.raises(
        CheckpointError, match=r"'a.weight' has shape \[2, 3\], but the configuration has \[3, 2\]"
    ):
        check_tensors(tensors, {"a.weight": (3, 2), "b": (1,)}, "FILE")


def test_an_exported_image_encoder_of_other_size_does_not_fit():
    config = tiny_config()
    larger = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image=dataclasses.replace(config.model.image, image_size=16)),
    )
    state = build_task(config).state_dict()
    with pytest.raises(CheckpointError, match="model.image_encoder.position_embeddings"):
        to_theirs(state, flava_entries(larger), "ours")
