"""Checks of what is read, and in which order: each names the field and what to give."""

from dataclasses import replace

import pytest

from flava_ds.config.data import DataConfig, SourceConfig, WeightChange, check_data
from flava_ds.errors import ConfigError

SOURCES = (SourceConfig(name="a", kind="pair", shards="x"), SourceConfig(name="b", kind="text", shards="x"))


def test_the_defaults_and_a_full_example_pass():
    check_data(DataConfig(), 512)
    changes = (WeightChange(step=6, weights=(1.0, 0.0)), WeightChange(step=12, kind_weights=(0.5, 0.0, 0.5)))
    check_data(DataConfig(sources=SOURCES, kind_weights=(0.8, 0.0, 0.2), weight_changes=changes, block_steps=6, shuffle_block_size=256), 512)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_steps": 0}, "data.block_steps is 0; it must be at least 1"),
        ({"shuffle_block_size": 0}, "data.shuffle_block_size is 0"),
        ({"shuffle_window_blocks": -1}, "data.shuffle_window_blocks is -1"),
        ({"prefetch_batches": 0}, "data.prefetch_batches is 0"),
        ({"prefetch_mib": 0}, "data.prefetch_mib is 0"),
        ({"max_member_bytes": 0}, "data.max_member_bytes is 0"),
        ({"max_image_pixels": 0}, "data.max_image_pixels is 0"),
        ({"cache_gib": 0.0}, "data.cache_gib is 0.0; it must be above 0"),
        ({"kind_weights": (0.5, 0.5)}, r"data.kind_weights \[0.5, 0.5\]: give 3 numbers .* for pairs, images and text"),
        ({"kind_weights": (0.0, 0.0, 0.0)}, "one of them above 0"),
        ({"weight_changes": (WeightChange(step=0, weights=(1.0, 1.0)),)}, r"weight_changes\[0\]: step 0 must come after step 0"),
        ({"weight_changes": (WeightChange(step=5, weights=(1.0, 1.0)),), "block_steps": 2}, "a multiple of data.block_steps 2"),
        ({"weight_changes": (WeightChange(step=5),)}, r"weight_changes\[0\] changes nothing"),
        ({"weight_changes": (WeightChange(step=5, weights=(1.0,)),)}, r"weight_changes\[0\].weights \[1.0\]: give 2 numbers of at least 0, for each source"),
        ({"weight_changes": (WeightChange(step=5, weights=(1.0, -1.0)),)}, "at least 0"),
        ({"weight_changes": (WeightChange(step=5, weights=(0.0, 1.0)), WeightChange(step=4, weights=(1.0, 1.0)))}, r"\[1\]: step 4 must come after step 5"),
        ({"sources": (SOURCES[0], replace(SOURCES[1], name="a"))}, "names must differ"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_data(DataConfig(**{"sources": SOURCES} | fields), 512)
