"""What trained LXMERTs and ViLBERTs offer: log odds, predictions and states of the training model itself."""

import dataclasses

import numpy as np
import pytest
import torch
from families.family_checks import by_kind
from families.two_streams.two_stream_peers import FEATURES, lxmert, make_batch, randomize, vilbert

from flava_ds.errors import ConfigError
from flava_ds.evaluation.protocols import Matcher, PairStates, Scorer, TextStates
from flava_ds.families.two_streams.capabilities import PairPart, offers
from flava_ds.families.two_streams.config import TEXT_VIEW
from flava_ds.families.two_streams.task import build_task
from flava_ds.regions.detector import Detector, DetectorConfig, load_detector, save_detector

FAMILIES = pytest.mark.parametrize("family", [lxmert, vilbert])
LENGTHS = (5, 12, 2, 9)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The file of a detector of random weights, which takes every centre of a cell for something."""
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(5))
    shape = {"widths": (4, 4, 8), "num_blocks": 1, "feature_size": FEATURES, "image_size": 16}
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save_detector(Detector(DetectorConfig(class_names=names, least_score=0.0, **shape)), path)
    return path


def prepared(family, detector):
    """A model in fp64, images, their texts, and a batch of what the detector finds in them."""
    config = family()
    model = dataclasses.replace(config.model, detector=str(detector))
    task = randomize(build_task(dataclasses.replace(config, model=model))).double()
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8, generator=draw)
    found = load_detector(detector)(pixels)
    assert found.max_seqlen > 1, "it finds regions"
    batch = make_batch(LENGTHS, tuple(found.cu_seqlens.diff().tolist()))
    batch = dataclasses.replace(
        batch,
        tensors={
            **batch.tensors,
            "region_features": found.features,
            "region_boxes": found.boxes,
            "region_hidden_rows": batch["region_hidden_rows"][:0],
        },
    )
    texts = [own.numpy() for own in batch["input_ids_masked"].split(list(LENGTHS))]
    return task, pixels, texts, batch


@FAMILIES
def test_log_odds_and_predictions_are_those_of_the_losses(family, detector):
    task, pixels, texts, batch = prepared(family, detector)
    parts, losses = by_kind(*offers(task, task.config)), task.losses(batch, only={"mmm_text", "itm"})
    one, other = parts[Matcher].log_odds(pixels, [texts, texts[::-1]])
    signs = 2 * batch["itm_labels"] - 1
    found = torch.nn.functional.softplus(-signs * one).sum()
    assert float(found) == pytest.approx(float(losses["itm"].sum.detach()), rel=1e-6)
    assert not torch.allclose(one, other)
    loss, _ = parts[Scorer].read(texts, pixels).tokens(batch["mlm_rows"]).loss(batch["mlm_labels"])
    assert float(loss) == pytest.approx(float(losses["mmm_text"].sum.detach()), rel=1e-6)


@FAMILIES
def test_states_to_be_fine_tuned_are_the_pooled_ones_with_a_graph(family, detector):
    task, pixels, texts, _ = prepared(family, detector)
    states = by_kind(*offers(task, task.config))[PairStates]
    copy = states.pair_states()
    found = copy(texts, pixels)
    torch.testing.assert_close(
        found, PairPart(task.model, load_detector(detector)).pooled(pixels, [texts])[0]
    )
    found.square().sum().backward()
    assert copy.width == found.shape[1] == task.config.model.pooled_size
    assert all((own.grad is not None) == own.requires_grad for own in copy.parameters())
    assert all(own.grad is None for own in task.model.parameters())
    unread = {name for name, own in copy.model.named_parameters() if not own.requires_grad}
    assert bool(unread) == (family is lxmert), "its pooler reads words alone"
    assert (
        unread
        == set(dict(task.model.named_parameters()))
        - (task.model.pooler_parameters() | task.model.parameters_of(TEXT_VIEW, read_directly=True))
        or family is vilbert
    )


@FAMILIES
def test_texts_alone_are_fine_tuned_by_what_reads_them(family):
    """They attend to no region, which leaves the bias; every weight that gets a gradient moves the state."""
    task = randomize(build_task(family()))
    copy = by_kind(*offers(task, task.config))[TextStates].text_states()
    texts = [np.array([2, 5, 6, 3]), np.array([2, 9, 3])]
    found = copy(texts)
    assert found.shape == (2, copy.width)
    torch.testing.assert_close(copy(texts[:1]), found[:1])
    found.square().sum().backward()
    moved = {name for name, own in copy.model.named_parameters() if own.grad is not None and own.grad.any()}
    assert moved == {name for name, own in copy.model.named_parameters() if own.requires_grad}
    assert not any("region_embeddings" in name or "streams.regions" in name for name in moved)
    assert any(".exchange." in name for name in moved) and copy.model is not task.model


@FAMILIES
def test_without_a_detector_or_its_objectives_it_says_why(family, detector):
    config = family()
    parts, lacks = offers(build_task(config), config)
    assert [type(own).__name__ for own in parts] == ["TextPart"]
    assert lacks["Matcher"] == lacks["Scorer"] and lacks["Scorer"].endswith("with --regions")
    assert "or there a folder of regions that were found before" in lacks["PairStates"]
    name = next(name for name in config.objectives if name not in ("mmm_text", "itm"))
    model = dataclasses.replace(config.model, detector=str(detector))
    alone = dataclasses.replace(config, model=model, objectives={name: config.objectives[name]})
    _, lacks = offers(build_task(alone), alone)
    assert "no matching head" in lacks["Matcher"] and "no masked objective" in lacks["Scorer"]
    assert "neither is trained alone" in lacks["Embedder"]
    other = dataclasses.replace(alone, model=dataclasses.replace(model, detector="demo"))
    with pytest.raises(ConfigError, match=f"features of width 64, and the model reads {FEATURES}"):
        offers(build_task(alone), other)
