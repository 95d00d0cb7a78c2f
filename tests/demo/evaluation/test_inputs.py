"""What evaluators are given: sets, labels, limits and the codebook, or the reason why there is none."""

import dataclasses

import pytest
import torch
from sample_runs import SEEN, UNSEEN_STYLES, WORDS, world, world_config

from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.errors import DataError


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))[0]


def test_sets_are_disjoint_in_what_they_hold_out(inputs):
    train, style, concepts = (
        set(s.column("concept")) for s in (inputs.train, inputs.unseen_style, inputs.unseen_concepts)
    )
    assert train == style == set(SEEN) and not train & concepts and set(inputs.labels) == set(WORDS)
    assert not set(inputs.train.column("style")) & set(inputs.unseen_style.column("style"))


def test_styles_are_the_same_objects_every_time(inputs):
    first, again = inputs.styles_of(inputs.unseen_style), inputs.styles_of(inputs.unseen_style)
    assert list(first) == sorted(UNSEEN_STYLES) and all(first[name] is again[name] for name in first)
    assert all(set(samples.column("style")) == {name} for name, samples in first.items())


def test_codes_are_the_codebooks(inputs):
    expected = inputs.codebook.encode(inputs.unseen_style.pixels(inputs.config.codebook.image_size))
    assert torch.equal(inputs.codes(inputs.unseen_style, 7), expected[:7])
    assert torch.equal(inputs.codes(inputs.unseen_style, 24), expected)


def test_the_checksum_follows_the_data(inputs, tmp_path):
    other, _ = world(tmp_path)
    assert other.checksum == inputs.checksum
    with (other.root / "concepts.json").open("a") as file:
        file.write(" ")
    assert dataclasses.replace(other).checksum != inputs.checksum


def test_a_codebook_that_is_not_there_is_a_reason(tmp_path):
    config = world_config(tmp_path)
    found = build_inputs(
        dataclasses.replace(config, codebook_weights=str(tmp_path / "none.safetensors")), tmp_path
    )
    assert found.codebook is None and "none.safetensors" in found.codebook_problem


def test_damaged_concepts_are_named(tmp_path):
    found = build_inputs(world_config(tmp_path), tmp_path)
    (tmp_path / "concepts.json").write_text("{}x")
    with pytest.raises(DataError, match="concepts.json"):
        _ = found.labels
