"""UniT: which parts a task trains, what it reads, its counts of parameters and work, and what it refuses."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from families.bert.bert_peers import randomize
from families.family_checks import step
from families.unit.unit_toys import OBJECTIVES, make_batch, tiny_config, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError
from flava_ds.families.unit.config import TASKS
from flava_ds.families.unit.model import Unit
from flava_ds.families.unit.task import build_task
from flava_ds.layers.words import PackedIds
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.recipes import RECIPES


@pytest.fixture(scope="module")
def task():
    return randomize(build_task(tiny_config()))


def test_parameters_are_the_published_ones_but_for_what_is_left_out():
    config = RECIPES["unit_base"]()
    with torch.device("meta"):
        model = Unit(config.model, {own.task: own.num_queries for own in config.objectives.values()})
        heads = [own.build(config) for own in config.objectives.values()]
    own = sum(p.numel() for part in (model, *heads) for p in part.parameters())
    attributes = 1602 * 256 + (768 + 256 + 1) * 512 + (512 + 1) * 401
    pooler, idle_rows = 768 * 769, 256 * (256 + 768) - 4 * 256 - 6 * 768
    assert own == 200_660_796 and own + pooler + idle_rows == 201_507_900
    assert sum(p.numel() for p in heads[1].attributes.parameters()) == attributes
    trained = {name for name, p in model.image_tower.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_task_trains_its_own_head_token_and_queries_and_what_it_reads(task, kind):
    """Heads of other tasks sleep; every parameter gets a gradient from the kinds that say so."""
    task.zero_grad(set_to_none=True)
    step(task, make_batch(kind)).backward()
    for name, kinds in task.users().items():
        assert (task.get_parameter(name).grad is not None) == (kind in kinds), name
        if name.startswith(("objectives.", "model.queries.", "model.text_tasks.", "model.image_tasks.")):
            assert len(kinds) == 1, name


def answers(task, kind, batch):
    encoded = task.model.encode(batch, [kind])[kind]
    rows = encoded.packed.hidden.shape[0]
    return encoded.rows(torch.arange(rows)).unflatten(0, (2, batch.size, -1))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_sample_does_not_depend_on_the_others(task, kind):
    """Packed texts of several lengths, against each sample alone."""
    own, batch = task.eval(), make_batch(kind)
    found = answers(own, kind, batch)
    bounds = batch.get("cu_seqlens")
    for row in range(batch.size):
        pixels, texts = None, None
        if "pixel_values" in batch:
            pixels = batch["pixel_values"][row : row + 1]
        if bounds is not None:
            ids = batch["input_ids"][bounds[row] : bounds[row + 1]]
            texts = PackedIds(ids, torch.tensor([0, len(ids)]).int(), len(ids))
        encoded = own.model.answer(kind, pixels, texts)
        alone = encoded.rows(torch.arange(encoded.packed.hidden.shape[0])).unflatten(0, (2, -1))
        torch.testing.assert_close(alone, found[:, row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "seen"), [("question", True), ("entailment", True), ("sst2", False)])
def test_queries_see_images_and_the_first_word_or_all(task, kind, seen):
    """A task of CLS alone is told by a text encoder of no layers' work: its other words change nothing."""
    own = task.eval()
    batch = make_batch(kind)
    before = answers(own, kind, batch)
    if "pixel_values" in batch:
        pixels = batch["pixel_values"].flip(0)
        assert seen and not torch.equal(answers(own, kind, batch.having(pixel_values=pixels)), before)
    texts = PackedIds.of(batch)
    memory = own.model.read_texts(kind, texts)
    whole = kind == "question"
    assert memory.packed.hidden.shape[0] == (len(batch["input_ids"]) if whole else batch.size)
    assert memory.packed.max_seqlen == (12 if whole else 1)
    table = own.model.text_encoder.embeddings.positions.weight
    expected = own.model.text_positions(table[:3] if whole else table[:1])
    torch.testing.assert_close(
        memory.positions[5 + 12 : 5 + 12 + 3] if whole else memory.positions[:1], expected
    )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_work_is_what_torch_counts(task, kind):
    """On texts of equal lengths, where nothing is padded."""
    own, batch = task.eval(), make_batch(kind, lengths=(8,) * 4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(own, batch)
    listed = sum(part.flops for part in own.passes(batch)) + own.objectives[kind].flops(own.model, batch)
    assert counter.get_total_flops() == listed
    assert own.flops(batch) == 3 * listed


def test_the_memory_of_an_image_is_its_cells_added_to_their_encoding(task):
    """The token of the task is read by the encoder, and no query sees it."""
    own, pixels = task.eval(), make_batch("detection")["pixel_values"]
    seen = own.model.read_images("detection", pixels)
    assert seen.packed.hidden.shape == seen.positions.shape == (4 * 4, 24) and seen.packed.max_seqlen == 4
    other = own.model.read_images("question", pixels)
    assert not torch.allclose(seen.packed.hidden, other.packed.hidden)
    torch.testing.assert_close(seen.positions, other.positions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_word_only": ("poetry",)}, "no task is called 'poetry'; there are detection, genome"),
        ({"encoder": dataclasses.replace(tiny_model().encoder, hidden_size=18)}, "need a multiple of 4"),
        ({"image": dataclasses.replace(tiny_model().image, frozen_stages=3)}, "there are 2 stages"),
    ],
)
def test_models_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(**changes).check(tiny_config())


def test_objectives_that_it_cannot_serve_are_refused():
    with pytest.raises(
        ConfigError, match="objectives.other reads .* 'unit'|which this model's family does not"
    ):
        check_objectives(tiny_config(objectives={"other": GlobalContrastiveConfig()}))
    twice = {"one": OBJECTIVES["detection"], "two": OBJECTIVES["detection"]}
    with pytest.raises(ConfigError, match="objectives.two: task 'detection' has another objective"):
        build_task(tiny_config(objectives=twice))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("detection", {"task": "sheep"}, "'unit' has no task 'sheep'; it has detection, genome, question"),
        ("detection", {"kind": "text"}, "task 'detection' needs samples of kind image"),
    ],
)
def test_sources_of_no_task_are_refused(task, changes, message):
    config = tiny_config()
    sources = {"own": dataclasses.replace(config.data.sources[task], **changes)}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(ConfigError, match=f"source 'own': .*{message}"):
        config.model.check_tasks(config)
    assert set(TASKS.values()) == {"image", "pair", "text"}
