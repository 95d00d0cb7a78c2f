"""A source's order follows its name or its seed: never its place, nor what else is in the run."""

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from flava_ds.config import SourceConfig
from flava_ds.data.loader import StepLoader
from flava_ds.data.order import source_seed
from flava_ds.data.round_robin import RoundRobin

GOLDEN = json.loads(Path(__file__).with_name("order_of_numbered_sources.json").read_text())
"""What a version read whose sources had numbers instead of names: 12 steps of the full shuffle, 12 of a
shuffle by blocks; 3,000 steps' sources.
"""
MASKS = (
    "bool_masked_pos",
    "mim_rows",
    "input_ids",
    "cu_seqlens",
    "input_ids_masked",
    "mlm_rows",
    "mlm_labels",
    "itm_labels",
    "matched_rows",
)
BY_BLOCKS = {"shuffle_block_size": 3, "shuffle_window_blocks": 2}


def digest(*arrays) -> str:
    """Hashes types, shapes and values."""
    found = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        found.update(str((array.dtype, array.shape)).encode() + array.tobytes())
    return found.hexdigest()[:16]


def steps_of(config):
    return [batch for (batch,) in StepLoader(config)]


def same(ours, theirs):
    """Tells whether two runs drew the same samples with the same pixels and masks."""
    assert [batch.keys for batch in ours] == [batch.keys for batch in theirs]
    for left, right in zip(ours, theirs, strict=True):
        for name in ("pixel_values", *MASKS):
            a, b = left.get(name), right.get(name)
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), name
    return True


def test_seeds_0_1_2_give_the_samples_pixels_and_masks_of_numbered_sources(make_config):
    batches = []
    for shuffle in ({}, BY_BLOCKS):
        batches += steps_of(replace(make_config(data=dict(shuffle)), seed=3))
    for batch, golden in zip(batches, GOLDEN["steps"], strict=True):
        assert (batch.source, " ".join(str(int(key)) for key in batch.keys)) == (
            golden["source"],
            golden["keys"],
        )
        assert (
            digest(*(value.numpy() for name in MASKS if (value := batch.get(name)) is not None))
            == golden["masks"]
        )
        means = (
            [] if "pixel_values" not in batch else batch["pixel_values"].double().mean(dim=(1, 2, 3)).tolist()
        )
        # grey levels; another crop or colour moves them by whole ones
        assert means == pytest.approx(golden["pixels"], abs=0.05)


@pytest.mark.parametrize("block_steps", [1, 6])
def test_seeds_0_1_2_give_the_schedule_of_numbered_sources(block_steps):
    names = ("pmd", "imagenet", "text")
    stages = [(0, (Fraction(7, 10), Fraction(3, 20), Fraction(3, 20))), (600, (Fraction(1, 3),) * 3)]
    named = [(first, dict(zip(names, shares, strict=True))) for first, shares in stages]
    schedule = RoundRobin(named, {name: number for number, name in enumerate(names)}, block_steps, 3)
    drawn = np.array([names.index(schedule.source_at(step)) for step in range(3000)], dtype=np.int64)
    assert digest(drawn) == GOLDEN["round_robin"][str(block_steps)]


def named(config):
    """Lets the seeds follow the names."""
    return config.with_sources(
        {name: replace(source, seed=None) for name, source in config.data.sources.items()}
    )


@pytest.mark.parametrize("shuffle", [{}, BY_BLOCKS])
def test_neither_place_nor_idle_sources_change_what_is_read(make_config, shuffle):
    """The idle source's shards do not exist: nothing looks for them."""
    config = named(make_config(data=dict(shuffle)))
    plain = steps_of(config)
    idle = SourceConfig(kind="pair", shards="nowhere", weight=0.0)
    turned = {"a": idle} | dict(reversed(config.data.sources.items())) | {"zz": idle}
    StepLoader(config.with_sources(turned), start_step=5).check_state(StepLoader(config).state(5))
    other = StepLoader(config.with_sources(turned))
    assert same([batch for (batch,) in other], plain)


def test_another_name_is_another_order_unless_the_seed_stays(make_config):
    config = named(make_config())
    sources = dict(config.data.sources)
    pairs, plain = sources.pop("pairs"), steps_of(config)
    other = steps_of(config.with_sources({"couples": pairs} | sources))
    kept = steps_of(
        config.with_sources({"couples": replace(pairs, seed=source_seed("pairs", None))} | sources)
    )
    of_pairs = [[batch.keys for batch in run if batch.kind == "pair"] for run in (plain, other, kept)]
    assert of_pairs[0][0] != of_pairs[1][0] and same(kept, plain)
    unchanged = [[batch.keys for batch in run if batch.kind == "text"] for run in (plain, other)]
    assert unchanged[0][0] == unchanged[1][0]


def test_the_seed_of_a_name_is_the_same_everywhere():
    assert (
        source_seed("pmd", None)
        == int.from_bytes(hashlib.sha256(b"pmd").digest()[:8], "little")
        != source_seed("pmd2", None)
    )
    assert source_seed("pmd", 3) == 3
