"""Long runs: memory stays flat, in the process that schedules and in those that read."""

import multiprocessing
import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flava_ds.config import WeightChange
from flava_ds.data.loader import StepLoader, _Schedule

MIB = 2**20


def resident(process: int) -> int:
    """Bytes of a process that are in memory and its own (shared pages of a forked process left out)."""
    _, pages, shared, *_ = map(int, Path(f"/proc/{process}/statm").read_text().split())
    return (pages - shared) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def long_config(make_config):
    """Steps of one or two samples, weights that change on the way, a shuffle by blocks."""
    config = make_config(
        data={
            "shuffle_block_size": 3,
            "shuffle_window_blocks": 2,
            "weight_changes": (
                WeightChange(step=30_000, weights={"pairs": 1.0, "images": 1.0, "text": 1.0}),
            ),
        },
        training={"total_steps": 100_000, "global_batch_size": 1},
    )
    text = replace(config.data.sources["text"], global_batch_size=2)
    return config.with_sources(config.data.sources | {"text": text})


@pytest.mark.slow
def test_the_schedule_of_100_000_steps_takes_no_more_memory_than_that_of_10_000(long_config):
    loader, sizes, draws, pending = StepLoader(long_config), {}, Counter(), defaultdict(list)
    visits = {name: np.zeros(len(source), dtype=int) for name, source in loader.sources.items()}
    for step, ((name, position, count, _), _) in enumerate(_Schedule(loader, None), start=1):
        draws[name] += 1
        pending[name].extend(range(position, position + count))
        if step % 1000:
            continue
        for name, source in loader.sources.items():
            np.add.at(
                visits[name], source.order.at(*np.divmod(np.array(pending[name], dtype=int), len(source))), 1
            )
        pending.clear()
        if step % 10_000 == 0:
            sizes[step] = resident(os.getpid())
    assert draws == {name: loader.round_robin.draws_before(name, 100_000) for name in loader.sources}
    assert all(
        abs(draws[name] - n) <= 2 for name, n in {"pairs": 41_333, "images": 29_333, "text": 29_333}.items()
    )  # 0.6, 0.2, 0.2 of 30,000 steps and a third of 70,000
    # each sample once in each of thousands of epochs
    assert all(visited.max() - visited.min() <= 1 for visited in visits.values())
    assert max(sizes.values()) - sizes[10_000] < 2 * MIB, sizes


@pytest.mark.slow
def test_loader_processes_do_not_grow_over_thousands_of_batches(long_config):
    config = replace(
        long_config,
        data=replace(long_config.data, num_workers=1),
        training=replace(long_config.training, total_steps=2_500),
    )
    before, sizes = set(multiprocessing.active_children()), {}
    for step, _ in enumerate(StepLoader(config), start=1):
        if step % 500 == 0:
            (worker,) = set(multiprocessing.active_children()) - before
            sizes[step] = resident(worker.pid), resident(os.getpid())
    assert all(max(size[i] for size in sizes.values()) - sizes[1000][i] < 4 * MIB for i in range(2)), sizes
