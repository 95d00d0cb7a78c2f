"""Sample order and per-sample randomness as pure functions, so that ranks agree by arithmetic and a run resumes from one integer per source.

Nothing here, nor in what draws from here, touches Python's, numpy's or torch's global generators.
"""

from __future__ import annotations

import math

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6
_ORDER, _SAMPLE = 1, 2
"""Domain separators: the key of an epoch's order never equals a sample's seed by construction."""


def mix64(value: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit integers bijectively.

    Shapes:
        value  [...]  uint64
        out    [...]  uint64
    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes a sequence of integers or broadcastable integer arrays to uint64; the order of the parts matters."""
    state = np.uint64(0x243F6A8885A308D3)
    with np.errstate(over="ignore"):
        for part in parts:
            state = mix64(np.asarray(state + _GAMMA, dtype=np.uint64)) ^ _unsigned(part)
            state = mix64(state + _GAMMA)
    return np.asarray(state, dtype=np.uint64)


def sample_at(seed: int, source: int, epoch: int | np.ndarray, position: int | np.ndarray, size: int, *, shuffle: bool = True) -> np.ndarray:
    """Returns which sample stands at `position` of `epoch`: a bijection on [0, size) for every (seed, source, epoch).

    A Feistel network over the mixed radix (a, b) with a*b just above `size` permutes [0, a*b); positions that land outside
    [0, size) walk on along their cycle until they land inside, which keeps the map a bijection.

    Shapes:
        epoch, position  [...]  broadcastable; position in [0, size)
        out              [...]  int64
    """
    epoch, position = np.broadcast_arrays(np.asarray(epoch, dtype=np.int64), np.asarray(position, dtype=np.int64))
    if size < 1 or (position.size and not 0 <= position.min() <= position.max() < size):
        raise IndexError(f"positions must lie in [0, {size})")
    if not shuffle:
        return position.copy()
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    key = hash64(_ORDER, seed, source, epoch).ravel()
    index = position.ravel().astype(np.uint64)
    outside = np.arange(index.size)
    while outside.size:
        index[outside] = _feistel(index[outside], key[outside], np.uint64(rows), np.uint64(columns))
        outside = outside[index[outside] >= np.uint64(size)]
    return index.astype(np.int64).reshape(position.shape)


def sample_seed(seed: int, source: int, epoch: int | np.ndarray, index: int | np.ndarray, attempt: int = 0) -> np.ndarray:
    """Returns the seed of everything random about one sample in one epoch: augmentation, caption choice, corruption.

    Shapes:
        epoch, index  [...]  broadcastable
        out           [...]  uint64
    """
    return hash64(_SAMPLE, seed, source, epoch, index, attempt)


def uniforms(seeds: np.ndarray, n: int, *, stream: int = 0, start: int = 0) -> np.ndarray:
    """Draws uniform numbers in [0, 1) that depend on the seeds alone; streams are independent of each other.

    Shapes:
        seeds  [b]    uint64
        out    [b n]  float64, draws start .. start + n - 1 of the stream
    """
    return uniform_at(np.asarray(seeds, dtype=np.uint64)[:, None], np.arange(start, start + n, dtype=np.int64)[None], stream=stream)


def uniform_at(seeds: np.ndarray, counters: np.ndarray, *, stream: int = 0) -> np.ndarray:
    """Draws number `counters` of each seed's stream: float64 in [0, 1), of the broadcast shape."""
    with np.errstate(over="ignore"):
        state = mix64(np.asarray(seeds, dtype=np.uint64) ^ hash64(stream)) + (_unsigned(counters) + np.uint64(1)) * _GAMMA
    return (mix64(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _feistel(index: np.ndarray, key: np.ndarray, rows: np.uint64, columns: np.uint64) -> np.ndarray:
    """Permutes [0, rows * columns), keyed per element: each half is shifted by a hash of the other, in turns."""
    left, right = index % rows, index // rows
    for number in range(_ROUNDS):
        with np.errstate(over="ignore"):
            salt = key + np.uint64(number + 1) * _GAMMA
            if number % 2:
                right = (right + mix64(mix64(salt) ^ left) % columns) % columns
            else:
                left = (left + mix64(mix64(salt) ^ right) % rows) % rows
    return left + rows * right


def _unsigned(value: int | np.ndarray) -> np.ndarray:
    """Returns `value` modulo 2**64 as uint64."""
    if isinstance(value, int):
        return np.uint64(value & 0xFFFFFFFFFFFFFFFF)
    value = np.asarray(value)
    return value if value.dtype == np.uint64 else value.astype(np.int64).view(np.uint64)
