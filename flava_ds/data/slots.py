"""Batches from loader processes to the trainer through shared memory that is used again.

torch's DataLoader makes a file of shared memory for each tensor: the kernel hands its pages out one by one,
to the process that writes them and to the one that reads them, and the two shake hands over its descriptor.
For a batch of pictures that costs a fifth of what decoding them does.
"""

from __future__ import annotations

import itertools
import logging
import math
import mmap
import os
import weakref
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_ALIGNMENT = 64
_PAGE = 4096
_KEYS = itertools.count()
_POOLS: weakref.WeakValueDictionary[int, SlotPool] = weakref.WeakValueDictionary()
"""The pools of this process by their key, for batches that arrive."""


class SlotPool:
    """Shared memory in slots, each of which holds the tensors of one batch.

    The trainer's process picks the slot that a request is answered in, as it alone knows which ones it has
    let go: those whose last tensor is gone. A loader process keeps to its own slots, so it meets each page
    once. Built before the loader processes start; picklable.
    """

    def __init__(self, workers: int, slots_each: int, slot_bytes: int) -> None:
        """Reserves address space; the kernel provides pages as they are first written. None of it counts
        against the size of /dev/shm.
        """
        self.slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        file = os.memfd_create("flava_ds batches")
        os.ftruncate(file, workers * slots_each * self.slot_bytes)
        self._map(file)
        self.key = next(_KEYS)
        self._free = [[worker * slots_each + slot for slot in range(slots_each)] for worker in range(workers)]
        self._slots_each, self._told = slots_each, False
        _POOLS[self.key] = self

    def take(self, worker: int) -> int | None:
        """Takes a free slot of a loader process; None when the trainer holds them all: that batch then goes
        torch's way.
        """
        if self._free[worker]:
            return self._free[worker].pop()
        if not self._told:
            log.info(
                "batches travel more slowly, each in files of shared memory of its own: more of them are "
                "in use than there are slots for"
            )
            self._told = True
        return None

    def open(self, number: int) -> Slot:
        """Returns an empty slot, in the process that fills it."""
        return Slot(self, number)

    def receive(self, number: int) -> Tensor:
        """Returns the bytes of a filled slot, which is free again when no tensor refers to them: [slot_bytes]
        uint8.
        """
        array = self.memory.numpy()[number * self.slot_bytes : (number + 1) * self.slot_bytes]
        weakref.finalize(array, self._free[number // self._slots_each].append, number).atexit = False
        return torch.from_numpy(array)  # its storage holds the array

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "memory"} | {
            "_file": DupFd(self._file)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map(state["_file"].detach())

    def _map(self, file: int) -> None:
        """Maps a file of shared memory, and closes it when the pool is gone; the memory stays for as long as
        tensors refer to it.
        """
        self._file, self.memory = (
            file,
            torch.frombuffer(mmap.mmap(file, os.fstat(file).st_size), dtype=torch.uint8),
        )
        weakref.finalize(self, os.close, file).atexit = False


class Slot:
    """One batch's memory, from which tensors are cut one after the other."""

    def __init__(self, pool: SlotPool, number: int) -> None:
        self._bytes, self._sent, self._end = (
            pool.memory[number * pool.slot_bytes : (number + 1) * pool.slot_bytes],
            _Sent(pool.key, number),
            0,
        )

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor, from ordinary memory when the slot is full."""
        size = math.prod(shape) * dtype.itemsize
        if self._end + size > len(self._bytes):
            return torch.empty(*shape, dtype=dtype)
        begin, self._end = self._end, -(-(self._end + size) // _ALIGNMENT) * _ALIGNMENT
        return self._bytes[begin : begin + size].view(dtype).view(shape)

    def put(self, tensor: Tensor) -> _Piece | Tensor:
        """Returns what stands for a tensor on its way to the trainer, after copying it into the slot unless
        it lies there; the tensor itself where the slot is full."""
        if not self._holds(tensor):
            copied = self.empty(*tensor.shape, dtype=tensor.dtype)
            if not self._holds(copied):
                return tensor
            tensor = copied.copy_(tensor)
        begin = tensor.storage_offset() * tensor.itemsize - self._bytes.storage_offset()
        return _Piece(self._sent, begin, tuple(tensor.shape), tensor.dtype)

    def _holds(self, tensor: Tensor) -> bool:
        """Tells whether a tensor's values lie in the slot, one after the other."""
        return (
            tensor.is_contiguous()
            and tensor.untyped_storage().data_ptr() == self._bytes.untyped_storage().data_ptr()
        )


class _Sent(NamedTuple):
    """A filled slot. Pickled once per batch, so that all its tensors refer to the same received bytes."""

    key: int
    number: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.key, self.number)


class _Piece(NamedTuple):
    """Where a tensor lies in a slot; arrives as the tensor."""

    slot: _Sent
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _cut, tuple(self)


def _receive(key: int, number: int) -> Tensor:
    """Finds a slot in the process that owns the pool."""
    return _POOLS[key].receive(number)


def _cut(slot: Tensor, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor of a slot, which stays in use as long as it."""
    return slot[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
