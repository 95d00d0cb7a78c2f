"""Passes batches from dataloader workers to the trainer through reusable shared memory.

torch's DataLoader creates a shared memory file for each tensor. The kernel then faults its pages in one by
one, in the writing and in the reading process, and the two exchange its file descriptor. For a batch of
images that costs a fifth of what decoding them does.
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
"""This process's pools by key; unpickled batches look up their pool here."""


class SlotPool:
    """Shared memory divided into slots, each of which holds the tensors of one batch.

    The trainer's process picks the slot for each request, because only it knows which slots are free: those
    whose last tensor is gone. Each worker has its own slots, so it faults in each page only once. Built
    before the workers start; picklable.
    """

    def __init__(self, workers: int, slots_each: int, slot_bytes: int) -> None:
        """Reserves address space; the kernel provides pages on first write, outside the limit of /dev/shm."""
        self.slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        file = os.memfd_create("flava_ds batches")
        os.ftruncate(file, workers * slots_each * self.slot_bytes)
        self._map(file)
        self.key = next(_KEYS)
        self._free = [[worker * slots_each + slot for slot in range(slots_each)] for worker in range(workers)]
        self._slots_each, self._told = slots_each, False
        _POOLS[self.key] = self

    def take(self, worker: int) -> int | None:
        """Takes a free slot of a worker; None if the trainer holds them all: torch then carries the batch."""
        if self._free[worker]:
            return self._free[worker].pop()
        if not self._told:
            log.info(
                "batches travel more slowly, through torch's own shared memory files: more of them are in "
                "use than there are slots"
            )
            self._told = True
        return None

    def open(self, number: int) -> Slot:
        """Returns an empty slot, in the process that fills it."""
        return Slot(self, number)

    def receive(self, number: int) -> Tensor:
        """Returns the bytes of a filled slot, which is free once no tensor uses them: [slot_bytes] uint8."""
        array = self.memory.numpy()[number * self.slot_bytes : (number + 1) * self.slot_bytes]
        weakref.finalize(array, self._free[number // self._slots_each].append, number).atexit = False
        return torch.from_numpy(array)  # the tensor's storage keeps the array alive

    def __getstate__(self) -> dict[str, Any]:
        shared = {name: value for name, value in vars(self).items() if name != "memory"}
        return shared | {"_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map(state["_file"].detach())

    def _map(self, file: int) -> None:
        """Maps the shared memory. The file closes with the pool, the mapping lives as long as its tensors."""
        self._file = file
        self.memory = torch.frombuffer(mmap.mmap(file, os.fstat(file).st_size), dtype=torch.uint8)
        weakref.finalize(self, os.close, file).atexit = False


class Slot:
    """The memory of one batch, allocated to its tensors front to back."""

    def __init__(self, pool: SlotPool, number: int) -> None:
        self._bytes = pool.memory[number * pool.slot_bytes : (number + 1) * pool.slot_bytes]
        self._sent, self._end = _Sent(pool.key, number), 0

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor in the slot, or in ordinary memory when the slot is full."""
        size = math.prod(shape) * dtype.itemsize
        if self._end + size > len(self._bytes):
            return torch.empty(*shape, dtype=dtype)
        begin, self._end = self._end, -(-(self._end + size) // _ALIGNMENT) * _ALIGNMENT
        return self._bytes[begin : begin + size].view(dtype).view(shape)

    def put(self, tensor: Tensor) -> _Piece | Tensor:
        """Returns a reference to send in place of a tensor, copying the tensor into the slot if needed.

        Returns the tensor itself when the slot is full.
        """
        if not self._holds(tensor):
            copied = self.empty(*tensor.shape, dtype=tensor.dtype)
            if not self._holds(copied):
                return tensor
            tensor = copied.copy_(tensor)
        begin = int(tensor.storage_offset() * tensor.itemsize - self._bytes.storage_offset())
        return _Piece(self._sent, begin, tuple(tensor.shape), tensor.dtype)

    def _holds(self, tensor: Tensor) -> bool:
        """Returns whether a tensor is contiguous and lies in the slot."""
        return (
            tensor.is_contiguous()
            and tensor.untyped_storage().data_ptr() == self._bytes.untyped_storage().data_ptr()
        )


class _Sent(NamedTuple):
    """A filled slot. Pickle stores it once per batch, so all tensors share the same received bytes."""

    key: int
    number: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.key, self.number)


class _Piece(NamedTuple):
    """A tensor's location in a slot; unpickles as the tensor."""

    slot: _Sent
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _cut, tuple(self)


def _receive(key: int, number: int) -> Tensor:
    """Looks up a slot in the process that owns the pool."""
    return _POOLS[key].receive(number)


def _cut(slot: Tensor, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor in a slot, which stays in use as long as the tensor."""
    return slot[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
