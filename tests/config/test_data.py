"""Checks of what is read, and in which order: each names the field and what to give."""

from dataclasses import replace

import pytest

from flava_ds.config.bounds import check_bounds
from flava_ds.config.data import (
    DataConfig,
    ImageTransformConfig,
    SourceConfig,
    WeightChange,
    drawn_sources,
)
from flava_ds.config.data_checks import check_data
from flava_ds.errors import ConfigError

PAIR, TEXT = SourceConfig(kind="pair", shards="x"), SourceConfig(kind="text", shards="x")
SOURCES = {"a": PAIR, "b": TEXT}


def change(step, **weights):
    return WeightChange(step=step, weights=weights or None)


def test_the_defaults_and_a_full_example_pass():
    check_data(DataConfig(), 512)
    changes = (change(6, b=0.0), WeightChange(step=12, kind_weights={"pair": 0.5, "text": 0.5}))
    check_data(
        DataConfig(
            sources=SOURCES,
            kind_weights={"pair": 0.8, "text": 0.2},
            weight_changes=changes,
            block_steps=6,
            shuffle_block_size=256,
        ),
        512,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_steps": 0}, "data.block_steps is 0; it must be at least 1"),
        ({"shuffle_block_size": 0}, "data.shuffle_block_size is 0"),
        ({"shuffle_window_blocks": -1}, "data.shuffle_window_blocks is -1"),
        ({"prefetch_batches": 0}, "data.prefetch_batches is 0"),
        ({"prefetch_mib": 0}, "data.prefetch_mib is 0"),
        ({"num_workers": 10**6}, "data.num_workers is 1000000; it must be at most 1024"),
        ({"cache_gib": float("nan")}, "data.cache_gib is nan; it must be above 0"),
        ({"read_timeout_s": float("nan")}, "data.read_timeout_s is nan; it must be above 0"),
        ({"read_timeout_s": float("inf")}, "data.read_timeout_s is inf; it must be at most 86400"),
        ({"worker_timeout_s": 10**13}, "data.worker_timeout_s is 10000000000000; it must be at most 604800"),
        (
            {"sources": {"a": replace(PAIR, global_batch_size=-4)}},
            "data.sources.a.global_batch_size is -4; it must be at least 1",
        ),
        (
            {"sources": {"a": replace(PAIR, seed=2**64)}},
            r"data.sources.a.seed is 18446744073709551616; it must be below 2\*\*64",
        ),
        (
            {"sources": {"a": replace(PAIR, transform=ImageTransformConfig(rotation_degrees=float("nan")))}},
            "rotation_degrees is nan; it must lie between 0 and 180",
        ),
        (
            {"sources": {"a": replace(PAIR, transform=ImageTransformConfig(crop_scale=(0.0, 1.0)))}},
            "each must be above 0 and at most 1",
        ),
        (
            {"sources": {"a": replace(PAIR, transform=ImageTransformConfig(crop_scale=(0.9, 0.5)))}},
            "give the smallest share of the area first",
        ),
        ({"max_member_bytes": 0}, "data.max_member_bytes is 0"),
        ({"max_image_pixels": 0}, "data.max_image_pixels is 0"),
        ({"cache_gib": 0.0}, "data.cache_gib is 0; it must be above 0"),
        (
            {"kind_weights": {"pair": 0.5}},
            (
                "data.kind_weights: no share for 'text', the kind of source 'b', at step 0; give it one, or "
                "0 to pause the kind"
            ),
        ),
        (
            {"kind_weights": {"pair": 0.5, "texts": 0.5}},
            "data.kind_weights: no kind is called 'texts'; did you mean 'text'?",
        ),
        (
            {"kind_weights": {"pair": 0.5, "text": -0.5}},
            "data.kind_weights is {.*}; that of 'text' must be at least 0",
        ),
        (
            {"kind_weights": {"pair": 0.0, "text": 0.0}},
            "no source has a weight above 0 at step 0; give one, e.g. --data.sources.a.weight 1",
        ),
        ({"weight_changes": (change(0, a=1.0),)}, "data.weight_changes.0.step is 0; it must be at least 1"),
        ({"weight_changes": (change(5, a=1.0),), "block_steps": 2}, "a multiple of data.block_steps 2"),
        ({"weight_changes": (change(5),)}, r"weight_changes\[0\] changes nothing"),
        (
            {"weight_changes": (change(5, c=1.0),)},
            r"weight_changes\[0\].weights: no source is called 'c'; there is a, b",
        ),
        (
            {"weight_changes": (change(5, b=-1.0),)},
            "data.weight_changes.0.weights is {'b': -1.0}; that of 'b' must be at least 0",
        ),
        ({"weight_changes": (change(5, b=float("nan")),)}, "that of 'b' must be at least 0"),
        ({"weight_changes": (change(5, a=0.0, b=0.0),)}, "no source has a weight above 0 at step 5"),
        ({"weight_changes": (change(5, a=0.0), change(4, a=1.0))}, r"\[1\]: step 4 must come after step 5"),
        (
            {"sources": {"a": replace(PAIR, seed=3), "b": replace(TEXT, seed=3)}},
            "'a' and 'b' both have seed 3; change --data.sources.b.seed",
        ),
        ({"sources": {"a_b": PAIR, "a-b": TEXT}}, "'a_b' and 'a-b' differ only in '_' and '-'"),
        (
            {"sources": {"a": replace(PAIR, weight=-1.0)}},
            "data.sources.a.weight is -1; it must be at least 0",
        ),
        (
            {"sources": {"a": replace(PAIR, weight=float("inf"))}},
            "data.sources.a.weight is inf; it must be at most 10",
        ),
        (
            {"sources": {"a": replace(PAIR, weight=0.0), "b": replace(TEXT, weight=0.0)}},
            "no source has a weight above 0 at step 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, message):
    data = DataConfig(**{"sources": SOURCES} | fields)
    with pytest.raises(ConfigError, match=message):
        check_bounds(data, "data")
        check_data(data, 512)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b", "../a", "-a", ".a", "a\nb", "a\n", "a\x1b[31m", "a=b", "a" * 101]
)
def test_a_name_that_cannot_stand_in_an_option_is_refused_in_one_line(name):
    with pytest.raises(ConfigError, match="cannot name a source") as caught:
        check_data(DataConfig(sources={name: PAIR}), 512)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["pmd", "cc12m-1.0", "laion_2b.en", "0", "C++", "фото"])
def test_usual_names_pass(name):
    check_data(DataConfig(sources={name: PAIR}), 512)


def test_a_source_is_drawn_when_some_stage_draws_it():
    third = SourceConfig(kind="image", shards="x", weight=0.0)
    data = DataConfig(sources={**SOURCES, "c": third}, kind_weights={"pair": 1.0, "image": 0.0, "text": 0.0})
    assert list(drawn_sources(data)) == ["a"]
    later = replace(data, weight_changes=(WeightChange(step=9, kind_weights={"image": 1.0}),))
    assert list(drawn_sources(later)) == ["a"]
    later = replace(
        data, weight_changes=(WeightChange(step=9, kind_weights={"image": 1.0}, weights={"c": 1.0}),)
    )
    assert list(drawn_sources(later)) == ["a", "c"]
