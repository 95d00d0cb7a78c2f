"""Sample order and per-sample randomness as pure functions of integers.

Ranks agree without communication, and a run resumes from one integer per source. Neither this module nor its
callers touch the global generators of Python, numpy or torch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Integers = np.ndarray | np.uint64
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6
"""Feistel rounds; even, so that both halves are scrambled equally often."""
_ORDER, _SAMPLE, _BLOCKS, _WINDOW, _START, _CROP = 1, 2, 4, 5, 6, 7
"""Domain separators: each use of a hash has its own; 3 belongs to indexed_draws.py."""


def mix64(value: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit integers bijectively.

    Shapes:
        value  [...]  uint64
        out    [...]  uint64
    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014).

    Callers ignore the overflow of scalars: np.errstate is slow for a few elements.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes a sequence of integers or broadcastable integer arrays to uint64; the order of parts matters."""
    # the leading integers rarely change between calls, so their hash comes from a cache
    leading = tuple(itertools.takewhile(lambda part: isinstance(part, int), parts))
    with np.errstate(over="ignore"):
        return np.asarray(_hash_on(_hash_integers(leading), parts[len(leading) :]), dtype=np.uint64)


@functools.lru_cache(maxsize=4096)
def _hash_integers(parts: tuple[int, ...]) -> np.uint64:
    """Hashes the leading integers that many calls share: a kind of draw, the run's seed, a source."""
    return np.uint64(_hash_on(np.uint64(0x243F6A8885A308D3), parts))


def _hash_on(state: Integers, parts: Sequence[int | np.ndarray]) -> Integers:
    """Continues a hash with more parts."""
    for part in parts:
        state = mix64(np.asarray(state + _GAMMA, dtype=np.uint64)) ^ _unsigned(part)
        state = mix64(state + _GAMMA)
    return state


@dataclass(frozen=True, kw_only=True)
class Order:
    """The sample at each position of an epoch: a bijection on [0, size) per epoch, computed without a table.

    The full shuffle (block_size 1) permutes samples. A block shuffle reads only window_blocks ranges of the
    shards at a time. It cuts an epoch into blocks of block_size consecutive samples, starting at a random
    sample, then permutes the blocks, and the samples within each window of window_blocks blocks:

        position p = u w + q,  w = window_blocks * block_size       window u, place q in it
        y = u w + permutation[epoch, u](q)                          another place of the same window
        sample = (start[epoch] + permutation[epoch](y div block_size) block_size + y mod block_size) mod size

    The remainder that fills no whole block stays in the last window. `source` is the source's source_seed.
    """

    seed: int
    source: int
    size: int
    shuffle: bool = True
    block_size: int = 1
    window_blocks: int = 1

    def __str__(self) -> str:
        if not self.shuffle:
            return "shard order"
        if self.block_size == 1:
            return "full shuffle"
        return f"shuffle of blocks of {self.block_size} in windows of {self.window_blocks} blocks"

    def at(self, epoch: int | np.ndarray, position: int | np.ndarray) -> np.ndarray:
        """Returns the samples at positions.

        Shapes:
            epoch, position  [...]  broadcastable; position in [0, size)
            out              [...]  int64
        Raises: IndexError outside [0, size).
        """
        epoch, position = np.broadcast_arrays(
            np.asarray(epoch, dtype=np.int64), np.asarray(position, dtype=np.int64)
        )
        if self.size < 1 or (position.size and not 0 <= position.min() <= position.max() < self.size):
            raise IndexError(f"positions must lie in [0, {self.size})")
        if not self.shuffle:
            return position.copy()
        flat, epochs = position.ravel(), epoch.ravel()
        if self.block_size == 1:
            keys = hash64(_ORDER, self.seed, self.source, epochs)
            return permuted(flat, keys, self.size).reshape(position.shape)
        return self._by_blocks(flat, epochs).reshape(position.shape)

    def _by_blocks(self, position: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Returns the samples at positions of a block shuffle: [k] int64, [k] int64 -> [k] int64."""
        width = self.window_blocks * self.block_size
        window, place = np.divmod(position, width)
        key = hash64(_WINDOW, self.seed, self.source, epoch, window)
        # the last window is shorter unless the windows divide the epoch; it is permuted by its own length
        whole = window < self.size // width
        place = place.copy()
        place[whole] = permuted(place[whole], key[whole], width)
        place[~whole] = permuted(place[~whole], key[~whole], self.size % width)
        block, inside = np.divmod(window * width + place, self.block_size)
        blocks = self.size // self.block_size
        # samples after the last whole block keep their place behind the permuted blocks
        in_block = block < blocks
        keys = hash64(_BLOCKS, self.seed, self.source, epoch)
        block[in_block] = permuted(block[in_block], keys[in_block], blocks)
        start = (hash64(_START, self.seed, self.source, epoch) % np.uint64(self.size)).astype(np.int64)
        return (start + block * self.block_size + inside) % self.size


def permuted(index: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    """Maps [0, size) onto itself, with another bijection for every key.

    A Feistel network over the mixed radix (a, b), with a*b just above `size`, permutes [0, a*b). A value
    outside [0, size) is permuted again until it lands inside (cycle walking), which keeps the map a
    bijection.

    Shapes:
        index  [k]  int64 in [0, size)
        key    [k]  uint64
        out    [k]  int64
    """
    if not index.size:
        return index
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    index = index.astype(np.uint64)
    outside = np.arange(index.size)
    while outside.size:
        index[outside] = _feistel(index[outside], key[outside], np.uint64(rows), np.uint64(columns))
        outside = outside[index[outside] >= np.uint64(size)]
    return index.astype(np.int64)


def source_seed(name: str, given: int | None) -> int:
    """Returns a source's number in seeds and hashes: `given`, or 64 bits of a hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") if given is None else given


def sample_seed(
    seed: int, source: int, epoch: int | np.ndarray, index: int | np.ndarray, attempt: int = 0
) -> np.ndarray:
    """Returns the seed of everything random about one sample in one epoch.

    That covers augmentation, caption choice and corruption. `source` is its source_seed; `attempt` counts the
    replacements of an unusable sample.

    Shapes:
        epoch, index  [...]  broadcastable
        out           [...]  uint64
    """
    return hash64(_SAMPLE, seed, source, epoch, index, attempt)


def crop_seeds(seeds: np.ndarray, name: str, number: int) -> np.ndarray:
    """Returns the seeds of crop `number` of the tensor `name`, by those of the samples: [b] uint64."""
    return hash64(_CROP, zlib.crc32(name.encode()), number, seeds)


def uniforms(seeds: np.ndarray, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """Draws uniform numbers in [0, 1) that depend only on the seeds; streams are mutually independent.

    Shapes:
        seeds  [b]    uint64
        out    [b n]  float64, draws start .. start + n - 1 of the stream
    """
    return uniform_at(
        np.asarray(seeds, dtype=np.uint64)[:, None],
        np.arange(start, start + n, dtype=np.int64)[None],
        stream=stream,
    )


def uniform_at(seeds: np.ndarray, counters: np.ndarray, *, stream: int = 0) -> np.ndarray:
    """Draws number `counters` of each seed's stream: float64 in [0, 1), of the broadcast shape."""
    with np.errstate(over="ignore"):
        start = mix64(np.asarray(seeds, dtype=np.uint64) ^ _hash_integers((stream,)))
        state = start + (_unsigned(counters) + np.uint64(1)) * _GAMMA
        return (mix64(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits fill a mantissa


def _feistel(index: np.ndarray, key: np.ndarray, rows: np.uint64, columns: np.uint64) -> np.ndarray:
    """Permutes [0, rows * columns), keyed per element: shifts each half in turn by a hash of the other."""
    right, left = np.divmod(index, rows)
    with np.errstate(over="ignore"):
        for number in range(_ROUNDS):
            salt = mix64(key + np.uint64(number + 1) * _GAMMA)
            if number % 2:
                right = (right + mix64(salt ^ left) % columns) % columns
            else:
                left = (left + mix64(salt ^ right) % rows) % rows
    return left + rows * right


def _unsigned(value: int | np.ndarray) -> Integers:
    """Returns `value` modulo 2**64 as uint64."""
    if isinstance(value, int):
        return np.uint64(value & 0xFFFFFFFFFFFFFFFF)
    value = np.asarray(value)
    return value if value.dtype == np.uint64 else value.astype(np.int64).view(np.uint64)
