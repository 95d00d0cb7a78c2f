"""What a trained UniT offers: objects, states to fine-tune, and reasons for what it lacks."""

import dataclasses

import numpy as np
import pytest
import torch
from families.bert.bert_peers import randomize
from families.family_checks import by_kind, numbered_words, texts_of, with_words
from families.unit.unit_toys import CLASSES, OBJECTIVES, QUERIES, make_batch, tiny_config

from flava_ds.evaluation.protocols import (
    CAPABILITIES,
    SPECIAL,
    ObjectFinder,
    PairStates,
    TextStates,
)
from flava_ds.families.unit.capabilities import offers
from flava_ds.families.unit.task import build_task
from flava_ds.layers.boxes import to_corners

KINDS = CAPABILITIES | SPECIAL


@pytest.fixture(scope="module")
def task():
    return randomize(build_task(tiny_config()), std=0.3).eval()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return with_words(tiny_config(), tmp_path_factory.mktemp("words"), numbered_words())


def test_objects_are_those_of_the_last_layer(task, config):
    finder = by_kind(*offers(task, config), KINDS)[ObjectFinder]
    batch, objective = make_batch("detection"), task.objectives["detection"]
    boxes, classes = finder.find_objects(batch["pixel_values"])
    encoded = task.model.encode(batch, ["detection"])["detection"]
    logits, placed = objective.predict(encoded.rows(torch.arange(2 * 4 * QUERIES)), 4)
    torch.testing.assert_close(boxes, to_corners(placed[-1]).clamp(0, 1).detach())
    torch.testing.assert_close(classes, logits[-1].softmax(-1)[..., :CLASSES].detach())
    assert boxes.shape == (4, QUERIES, 4) and finder.num_classes == CLASSES
    torch.testing.assert_close(finder.find_objects(batch["pixel_values"][2:3])[0], boxes[2:3])


def test_states_to_be_fine_tuned_have_a_graph_of_what_they_depend_on(task, config):
    """Three samples are no whole groups of two: norms go on by their running moments. Opened models are
    frozen.
    """
    parts = by_kind(*offers(task.requires_grad_(False), config), KINDS)
    batch = make_batch("question", lengths=(5, 7, 9), counts=(1, 1, 1))
    texts, pixels = texts_of(batch), batch["pixel_values"]
    of_texts, of_pairs = parts[TextStates].text_states(), parts[PairStates].pair_states(2.0)
    assert (of_texts.width, of_pairs.width, of_pairs.image_size) == (24, 24, 32)
    assert parts[TextStates].task == "sst2"
    for states, inputs in ((of_texts.train(), (texts,)), (of_pairs.train(), (texts, pixels))):
        found = states(*inputs)
        found.square().sum().backward()
        trained = {name for name, own in states.named_parameters() if own.requires_grad}
        assert {name for name, own in states.named_parameters() if own.grad is not None} == trained
        alone = states(*(own[1:2] for own in inputs))
        torch.testing.assert_close(alone, found[1:2], atol=1e-5, rtol=1e-5)
    assert all(own.grad is None for own in task.model.parameters())
    encoded = task.model.encode(batch, ["question"])["question"]
    expected = encoded.rows(task.model.first_rows("question", batch))
    torch.testing.assert_close(of_pairs(texts, pixels), expected, atol=1e-5, rtol=1e-5)


def test_the_second_segment_is_told(task, config):
    states = by_kind(*offers(task, config), KINDS)[TextStates].text_states()
    one, two = np.array([101, 110, 120, 130, 102]), np.array([101, 110, 102, 130, 102])
    other = states.model.text_encoder.embeddings.token_types
    before = states([one, two]).detach()
    with torch.no_grad():
        other.weight[1] += 1
    after = states([one, two]).detach()
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])


def test_runs_of_some_tasks_say_what_they_lack(config):
    for task, missing in (
        ("detection", {"PairStates", "TextStates"}),
        ("sst2", {"PairStates", "ObjectFinder"}),
        ("question", {"ObjectFinder"}),
    ):
        own = dataclasses.replace(config, objectives={task: OBJECTIVES[task]})
        offered, lacks = offers(build_task(own), own)
        by_kind(offered, lacks, KINDS)
        assert {name for name in lacks if "run trains on no" in lacks[name]} == missing
