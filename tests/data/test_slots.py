"""Slots of shared memory: what arrives is what was put in, and no slot is used again while any of its tensors
lives.
"""

import gc
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flava_ds.data.loader import StepLoader
from flava_ds.data.slots import SlotPool


def sent(slot, *tensors):
    """Puts tensors into a slot and takes them out as the trainer's process does."""
    return pickle.loads(pickle.dumps([slot.put(tensor) for tensor in tensors]))


def same(left, right) -> bool:
    """Tells whether two batches hold equal tensors of equal types."""
    found = [
        [(name, value.dtype, value.tolist()) for name, value in batch.tensors.items()]
        for batch in (left, right)
    ]
    return found[0] == found[1] and left.numbers == right.numbers


@pytest.fixture
def batches_of(make_config):
    """Returns a function that builds a loader's batches, of whose pairs a quarter is masked."""

    def build(workers: int):
        config = make_config(
            data={"num_workers": workers, "prefetch_batches": 1}, training={"total_steps": 30}
        )
        quarter = replace(config.data.sources["pairs"], masked_share=0.25)
        return (
            batch for (batch,) in StepLoader(config.with_sources(config.data.sources | {"pairs": quarter}))
        )

    return build


def test_tensors_of_every_type_shape_and_layout_arrive_as_they_were():
    tensors = [
        torch.arange(24, dtype=torch.uint8).view(2, 3, 4),
        torch.tensor([True, False]),
        torch.tensor([], dtype=torch.int64),
        torch.tensor(7, dtype=torch.int32),
        torch.arange(12, dtype=torch.int64).view(3, 4).T,
        torch.arange(12, dtype=torch.float32)[::2],
    ]
    pool = SlotPool(1, 1, 4096)
    for ours, theirs in zip(tensors, sent(pool.open(0), *tensors), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs) and theirs.is_contiguous()


def test_what_is_made_in_the_slot_is_not_copied_and_equal_tensors_stay_one():
    pool = SlotPool(1, 2, 4096)
    slot = pool.open(1)
    pixels = slot.empty(2, 3, dtype=torch.uint8).fill_(1)
    first, again = sent(slot, pixels, pixels)
    pixels.fill_(9)
    assert (
        first.tolist() == [[9] * 3] * 2
        and first.data_ptr() == again.data_ptr() == pool.memory.data_ptr() + 4096
    )


def test_what_does_not_fit_travels_by_itself():
    slot = SlotPool(1, 1, 4096).open(0)
    inside, outside = slot.empty(4000, dtype=torch.uint8), slot.empty(4000, dtype=torch.uint8)
    assert slot._holds(inside) and not slot._holds(outside)
    assert slot.put(outside) is outside and slot.put(large := torch.zeros(1000, dtype=torch.int64)) is large


def test_a_slot_is_free_again_when_its_last_tensor_is_gone():
    pool = SlotPool(2, 1, 4096)
    assert (pool.take(1), pool.take(1), pool.take(0)) == (1, None, 0)
    small, large = sent(pool.open(1), torch.zeros(1), torch.zeros(100))
    part = large.view(10, 10)[3]
    del large, small
    gc.collect()
    assert pool.take(1) is None
    del part
    assert pool.take(1) == 1


def test_a_pool_that_is_gone_leaves_its_tensors_alone():
    pool = SlotPool(1, 1, 4096)
    (tensor,) = sent(pool.open(0), torch.arange(500))
    del pool
    gc.collect()
    assert torch.equal(tensor, torch.arange(500))


def test_slots_take_no_room_in_dev_shm_and_no_memory_before_they_are_written():
    """A container's /dev/shm has 64 MiB unless somebody enlarges it."""
    room = os.statvfs("/dev/shm")
    pool = SlotPool(2, 4, room.f_bavail * room.f_frsize)
    (tensor,) = sent(pool.open(7), torch.arange(500))
    assert tensor.tolist() == list(range(500)) and os.fstat(pool._file).st_blocks * 512 <= 2**22


def test_a_pool_that_is_gone_closes_its_file_and_unmaps_its_memory():
    def maps():
        return Path("/proc/self/maps").read_text().count("flava_ds batches"), len(os.listdir("/proc/self/fd"))

    before = maps()
    pools = [SlotPool(1, 1, 4096) for _ in range(10)]
    tensors = [sent(pool.open(0), torch.arange(5))[0] for pool in pools]
    assert maps()[1] > before[1]
    del pools
    gc.collect()
    assert maps()[0] == before[0] + 10 and all(tensor.tolist() == [0, 1, 2, 3, 4] for tensor in tensors)
    del tensors
    gc.collect()
    assert maps() == before


def fill(pool, queue):
    """Answers from another process."""
    queue.put([pool.open(2).put(torch.arange(5))])
    queue.get()


def test_processes_that_are_not_forked_share_the_memory():
    pool, context = SlotPool(1, 3, 4096), multiprocessing.get_context("spawn")
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    process = context.Process(target=fill, args=(pool, queue))
    process.start()
    (tensor,) = queue.get()
    assert tensor.tolist() == [0, 1, 2, 3, 4] and tensor.data_ptr() == pool.memory.data_ptr() + 2 * 4096
    queue.put(None)
    process.join(60)
    assert process.exitcode == 0


@pytest.fixture
def another_default():
    """Lets processes start as they do from Python 3.14 on."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_loader_processes_are_forked_whatever_the_default_is(batches_of, another_default):
    batches = iter(batches_of(2))
    next(batches)
    assert [type(process).__name__ for process in multiprocessing.active_children()] == ["ForkProcess"] * 2


def test_batches_that_are_kept_stay_what_they_are(batches_of, caplog):
    """All 30 are held at once, more than there are slots, which is told once."""
    caplog.set_level("INFO")
    ours, theirs = list(batches_of(2)), list(batches_of(0))
    assert len(ours) == len(theirs) == 30 and all(map(same, ours, theirs))
    assert caplog.text.count("batches travel more slowly") == 1


def test_a_trainer_that_lets_its_batches_go_meets_the_same_memory_again(batches_of, monkeypatch):
    taken = []
    monkeypatch.setattr(
        SlotPool,
        "take",
        lambda self, worker, take=SlotPool.take: taken.append(take(self, worker)) or taken[-1],
    )
    for batch, expected in zip(batches_of(2), batches_of(0), strict=True):
        assert same(batch, expected)
    assert len(taken) == 30 and None not in taken and len(set(taken)) <= 6
