"""The loader as the trainer sees it: steps, ranks, workers, resume, faults."""

import multiprocessing
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.shard_files import pair_members
from data.whole_sources import iterate_once

from flava_ds.config import WeightChange
from flava_ds.data import loader as loader_module
from flava_ds.data.loader import StepLoader
from flava_ds.errors import DataError
from flava_ds.families.flava.views import Kind

TENSORS = (
    "pixel_values",
    "codebook_pixel_values",
    "bool_masked_pos",
    "input_ids",
    "input_ids_masked",
    "itm_labels",
)


def flat(batches):
    """Joins a step's batches, in the order of the global batch, into comparable arrays."""
    joined = {"keys": sum((batch.keys for batch in batches), ())}
    for name in TENSORS:
        values = [batch.get(name) for batch in batches]
        joined[name] = None if values[0] is None else torch.cat(values)
    return joined


def global_steps(config, world_size, start_step=0):
    """Runs the loaders of all ranks and restores each step's global batch."""
    ranks = [list(StepLoader(config, rank, world_size, start_step)) for rank in range(world_size)]
    accumulation = config.training.gradient_accumulation_steps
    return [
        flat([ranks[r][step][m] for m in range(accumulation) for r in range(world_size)])
        for step in range(len(ranks[0]))
    ]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["keys"] == b["keys"]
        for name in TENSORS:
            assert (a[name] is None) == (b[name] is None), name
            assert a[name] is None or torch.equal(a[name], b[name]), name


def elastic(config, world_size, accumulation, workers):
    return replace(
        config,
        training=replace(config.training, gradient_accumulation_steps=accumulation),
        data=replace(config.data, num_workers=workers),
    )


@pytest.mark.parametrize(
    ("world_size", "accumulation", "workers"),
    [(1, 2, 0), (2, 1, 0), (4, 2, 0), (1, 8, 0), (1, 1, 1), (2, 2, 2)],
)
def test_every_split_of_the_global_batch_sees_the_same_samples_captions_and_masks(
    make_config, world_size, accumulation, workers
):
    """(1, 8) and (4, 2) have micro-batches of one pair: each borrows from other micro-batches or ranks."""
    config = make_config()
    whole = global_steps(config, 1)
    labels = torch.cat([step["itm_labels"] for step in whole if step["itm_labels"] is not None])
    assert 8 <= (labels == 0).sum() <= len(labels) / 2
    assert_equal(global_steps(elastic(config, world_size, accumulation, workers), world_size), whole)


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (5, 1), (11, 0), (12, 0)])
def test_resuming_at_any_step_continues_the_uninterrupted_stream(make_config, start, workers):
    config = make_config()
    assert_equal(global_steps(elastic(config, 1, 1, workers), 1, start), global_steps(config, 1)[start:])


def test_steps_draw_their_source_and_every_epoch_visits_every_sample_once(make_config):
    config = make_config(training={"total_steps": 40})
    loader = StepLoader(config)
    seen = {"pairs": [], "images": [], "text": []}
    for step, (batch,) in enumerate(loader):
        name = loader.round_robin.source_at(step)
        assert (batch.source, batch.kind) == (name, Kind(config.data.sources[name].kind))
        assert batch.size == len(batch.keys) == config.global_batch_size(name)
        seen[batch.source] += batch.keys
    for name, size in (("pairs", 23), ("images", 10), ("text", 17)):
        epochs = [seen[name][start : start + size] for start in range(0, len(seen[name]) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_unshuffled_order_is_that_of_the_shards(make_config):
    config = make_config(data={"shuffle": False})
    keys = [key for (batch,) in StepLoader(config) if batch.source == "pairs" for key in batch.keys]
    assert [int(key) for key in keys[:30]] == [n % 23 for n in range(30)]


def test_another_epoch_and_another_seed_change_the_augmentation(make_config):
    config = make_config(training={"total_steps": 30})
    first, other = (
        [batch for (batch,) in StepLoader(c) if batch.kind == Kind.IMAGE]
        for c in (config, replace(config, seed=1))
    )
    masks = [
        {(key, b["bool_masked_pos"][row].numpy().tobytes()) for b in run for row, key in enumerate(b.keys)}
        for run in (first, other)
    ]
    visits = sum(batch.size for batch in first)
    assert visits >= 3 * 10
    assert len(masks[0]) > 0.8 * visits
    assert len(masks[0] & masks[1]) < 0.3 * visits


@pytest.fixture
def damaged(make_config, make_shard, tmp_path):
    """A configuration whose pairs have one undecodable picture of 30."""
    members = pair_members(range(30))
    members[3 * 7] = (members[3 * 7][0], b"not a picture")
    make_shard("damaged/0.tar", members)
    config = make_config()
    pairs = replace(config.data.sources["pairs"], shards=str(tmp_path / "damaged"))
    return config.with_sources({"pairs": pairs})


def test_a_bad_sample_is_replaced_alike_on_every_split_and_counted(damaged):
    assert_equal(global_steps(elastic(damaged, 2, 2, 0), 2), global_steps(damaged, 1))
    batches = [batch for (batch,) in StepLoader(damaged)]
    assert sum(batch.read.skipped.get("undecodable", 0) for batch in batches) >= 3
    assert all("000000007" not in batch.keys and len(batch.keys) == 8 for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_one_line(damaged, make_shard, tmp_path, workers):
    members = [
        (name, b"RIFF" if name.endswith("webp") and int(name[:9]) % 3 == 0 else data)
        for name, data in pair_members(range(30))
    ]
    make_shard("damaged/0.tar", members)
    config = elastic(replace(damaged, training=replace(damaged.training, total_steps=40)), 1, 1, workers)
    with pytest.raises(
        DataError,
        match=(
            r"source 'pairs': \d+ of \d+ samples \([\d.]+%\) are unusable: undecodable \d+.*last: "
            r"'0000000.*0\.tar"
        ),
    ) as caught:
        list(StepLoader(config))
    assert "\n" not in str(caught.value)


def test_a_source_without_one_good_sample_ends_instead_of_spinning(damaged, make_shard):
    make_shard(
        "damaged/0.tar",
        [(name, b"" if name.endswith("webp") else data) for name, data in pair_members(range(3))],
    )
    with pytest.raises(DataError, match="unusable: truncated"):
        list(StepLoader(damaged))


def test_the_data_set_is_picklable(make_config):
    loader = StepLoader(make_config(training={"global_batch_size": 16}))
    again = pickle.loads(pickle.dumps(loader.readers["pairs"]))
    assert torch.equal(
        again.batch(np.arange(4))["pixel_values"], loader.readers["pairs"].batch(np.arange(4))["pixel_values"]
    )


def test_iterate_once_yields_everything_in_order_with_captions(make_config):
    config = make_config()
    batches = list(iterate_once(config, "pairs", batch_size=10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    samples = sum(batches, [])
    assert [sample.index for sample in samples] == list(range(23))
    assert all(
        len(sample.captions) == 3 and sample.text == sample.captions[0] and sample.image.shape == (3, 16, 16)
        for sample in samples
    )


def test_leaving_early_ends_the_loader_processes(make_config):
    before = set(multiprocessing.active_children())
    for _ in StepLoader(elastic(make_config(), 1, 1, 2)):
        assert len(set(multiprocessing.active_children()) - before) == 2
        break
    assert set(multiprocessing.active_children()) <= before


def test_reading_moves_no_global_generator(make_config):
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    for workers in (0, 1):
        list(StepLoader(elastic(make_config(), 1, 1, workers)))
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )


def test_progress_of_the_sources_is_what_was_drawn_against_the_weights(make_config):
    """Shares 3/5, 1/5, 1/5 for 10 steps, then pairs alone: after 20 steps the targets are 16/20,
    2/20, 2/20."""
    config = make_config(training={"total_steps": 20})
    config = replace(
        config,
        data=replace(
            config.data, weight_changes=(WeightChange(step=10, weights={"images": 0.0, "text": 0.0}),)
        ),
    )
    loader = StepLoader(config)
    for step in (4, 10, 20):
        drawn = [loader.round_robin.source_at(s) for s in range(step)]
        found = loader.progress(step)
        for name, size, samples in (("pairs", 8, 23), ("images", 8, 10), ("text", 16, 17)):
            assert found[f"source_share/{name}"] == drawn.count(name) / step
            assert found[f"epoch/{name}"] == drawn.count(name) * size / samples
    assert [found[f"source_target/{name}"] for name in ("pairs", "images", "text")] == pytest.approx(
        [0.8, 0.1, 0.1]
    )
    assert [
        loader.progress(4)[f"source_target/{name}"] for name in ("pairs", "images", "text")
    ] == pytest.approx([0.6, 0.2, 0.2])
    assert loader.progress(0)["source_share/pairs"] == 0.0
    for step in (0, 3, 9, 20):
        rest = [loader.round_robin.source_at(s) for s in range(step, 20)]
        left = {name: rest.count(name) for name in ("pairs", "images", "text")}
        assert loader.steps_left(step) == left
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader_module, "COUNTED_STEPS", 0)
            by_weight = loader.steps_left(step)
        assert all(abs(by_weight[name] - left[name]) < 1 for name in left)


def test_what_sources_say_in_the_same_words_is_one_line(make_config, make_shard, caplog):
    make_shard("images/1.tar", [("bad.PNG.gz", b"no picture")])
    StepLoader(make_config())
    compared, left_out = caplog.messages
    words = "ranks and resumed runs compare keys, sizes and places of its members, bytes of 8 of its samples"
    assert compared.startswith(f"sources 'pairs', 'images', 'text', each: {words} (")
    assert left_out.startswith("source 'images': 10 usable samples; left out: ")
    caplog.clear()
    StepLoader(make_config(), rank=1, world_size=2)
    assert not caplog.messages
