"""What trained single streams offer: those of the training model itself, over what the detector finds."""

import dataclasses

import numpy as np
import pytest
import torch
from families.bert.bert_peers import randomize
from families.single_stream.single_stream_peers import TEXT, make_batch, word_file
from families.single_stream.test_single_stream_runs import FAMILIES

from flava_ds.config import Config, DataConfig
from flava_ds.data.regions import read_regions
from flava_ds.evaluation.protocols import (
    CAPABILITIES,
    Losses,
    Matcher,
    PairStates,
    Scorer,
    TextFeatures,
    TextStates,
)
from flava_ds.families.single_stream.capabilities import offers
from flava_ds.families.single_stream.task import build_task
from flava_ds.prepare.regions import encoded
from flava_ds.recipes.demo import demo_regions
from flava_ds.regions.detector import load_detector


@pytest.fixture(scope="module")
def found():
    """Four pictures of blots, and what the demo's detector finds in them."""
    draw = np.random.default_rng(0)
    pixels = np.full((4, 3, 96, 96), 255, dtype=np.uint8)
    for picture, blots in zip(pixels, (3, 1, 2, 4), strict=True):
        for _ in range(blots):
            y, x = draw.integers(0, 64, 2)
            picture[:, y : y + 28, x : x + 28] = draw.integers(0, 255, (3, 1, 1))
    pixels = torch.from_numpy(pixels)
    return pixels, load_detector("demo")(pixels)


def config_of(family: str, folder, **changed) -> Config:
    model, objectives = FAMILIES[family]
    model = dataclasses.replace(model, image=demo_regions(), text=TEXT, **changed)
    data = DataConfig(vocabulary=word_file(folder))
    return Config(name=family, model=model, objectives=objectives, data=data)


def parts_of(task, config):
    parts, lacks = offers(task, config)
    held = {
        kind: [own for own in parts if isinstance(own, kind)] for kind in CAPABILITIES if kind is not Losses
    }
    assert {kind.__name__ for kind, own in held.items() if not own} == lacks.keys()
    return {kind: own[0] for kind, own in held.items() if own}, lacks


def batch_of(regions, texts):
    """A batch of the detector's regions, and texts of so many words in each segment."""
    batch, counts = make_batch(texts), regions.cu_seqlens.diff()
    batch = batch.having(
        region_features=regions.features,
        region_boxes=regions.boxes,
        region_classes=regions.classes,
        region_cu_seqlens=regions.cu_seqlens,
        region_masked_rows=torch.tensor([1]),
        region_hidden_rows=torch.tensor([1]),
        nsp_samples=torch.arange(4),
        nsp_labels=torch.tensor([0, 1, 1, 0]),
    )
    joint = int((batch["cu_seqlens"].diff() + counts).max())
    names = ("joint_max_seqlen", "matching_joint_max_seqlen")
    numbers = batch.numbers | {"region_max_seqlen": regions.max_seqlen} | dict.fromkeys(names, joint)
    return dataclasses.replace(batch, numbers=numbers)


def texts_of(batch, name, bounds="cu_seqlens"):
    return [own.numpy() for own in batch[name].split(batch[bounds].diff().tolist())]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_losses(family, found, tmp_path):
    pixels, regions = found
    config = config_of(family, tmp_path, detector="demo")
    task = randomize(build_task(config), std=0.05)
    parts, _ = parts_of(task, config)
    two = any(name == "sentence_image" for name in config.objectives)
    batch = batch_of(regions, ((0, 3), (0, 6), (0, 2), (0, 4)) if two else ((3,), (6,), (2,), (4,)))
    if two:  # the matcher itself puts an empty first segment before a caption, and masks nothing
        batch = batch.having(input_ids_masked=batch["input_ids"])
        captions = [np.concatenate([ids[:1], ids[2:]]) for ids in texts_of(batch, "input_ids")]
        signs, name = 1 - 2 * batch["nsp_labels"], "sentence_image"
    else:
        captions = texts_of(batch, "matching_input_ids", "matching_cu_seqlens")
        signs, name = 2 * batch["itm_labels"] - 1, "itm"
    one, other = parts[Matcher].log_odds(pixels, [captions, captions[::-1]])
    losses = task.losses(batch)
    loss = torch.nn.functional.softplus(-signs * one).sum()
    assert loss.item() == pytest.approx(losses[name].sum.item(), rel=1e-4) and not torch.allclose(one, other)
    words = parts[Scorer].read(texts_of(batch, "input_ids_masked"), pixels).tokens(batch["mlm_rows"])
    told, _ = words.loss(batch["mlm_labels"])
    assert told.item() == pytest.approx(losses["mmm_text"].sum.item(), rel=1e-4)
    tunable = parts[PairStates].pair_states()
    states = tunable(captions, pixels)
    assert states.shape == (4, TEXT.hidden_size) and tunable.image_size == 96
    states.sum().backward()
    trained = {name for name, own in tunable.named_parameters() if own.grad is not None}
    assert "model.pooler.dense.weight" in trained and any("regions" in name for name in trained)
    assert all(own.grad is None for own in task.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_detector_texts_are_all_that_it_reads(family, tmp_path):
    config = config_of(family, tmp_path)
    task = build_task(config)
    parts, lacks = parts_of(task, config)
    assert parts.keys() == {TextFeatures, TextStates} and config.model.image_size == 0
    for name in ("Matcher", "Scorer", "PairStates"):
        assert "give model.detector" in lacks[name]
    texts = texts_of(make_batch(), "input_ids")
    assert parts[TextFeatures].text_features(texts).shape == (4, TEXT.hidden_size)


def test_the_members_that_are_prepared_are_those_that_sources_read(found):
    pixels, regions = found
    members = encoded(load_detector("demo"), regions)
    read = [read_regions(own, feature_size=64, num_classes=97, most=9) for own in members]
    assert np.array_equal(np.concatenate([own.boxes for own in read]), regions.boxes.numpy())
    features = np.concatenate([own.features for own in read]).astype(np.float32)
    assert np.abs(features - regions.features.numpy()).max() < 5e-3
    assert [len(own.boxes) for own in read] == regions.cu_seqlens.diff().tolist()
