"""Skip lists: samples to leave out, by key, by the SHA-256 of the image file, or by a perceptual hash.

A list is a text file with one entry per line, so lists can be joined with `cat`; '#' begins a comment:

    key 000000391895
    sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    phash 8f373714acfcf4d0 6        skips images whose hash differs in at most 6 of the 64 bits
    sample /data/00012.tar 000120034    skips that key in that shard, by whatever path; both percent-encoded

    phash: bit (u, v) = D[u, v] > median(D),   D = C Y C^T on u, v < 8,   C[u, x] = cos(pi u (2x + 1) / 64),
    Y the luminance of the image at 32 x 32.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flava_ds.data.colors import LUMINANCE
from flava_ds.errors import DataError
from flava_ds.storage.files import without_links

_SIDE, _KEPT = 32, 8
_FORMS = {
    "key": r"\S+",
    "sha256": r"[0-9a-f]{64}",
    "phash": r"[0-9a-f]{16}( [0-9]{1,2})?",
    "sample": r"\S+ \S+",
}


@dataclass(frozen=True)
class SkipList:
    """The entries of a skip list, by kind. Looking up an image costs one pass over the perceptual hashes.

    Nothing is computed later: forked loader processes share all of it, and a checkpoint reads `fingerprint`.

    Shapes:
        hashes     [n]  uint64
        distances  [n]  uint8, number of bits in which a skipped image's hash may differ
    """

    keys: frozenset[str]
    digests: frozenset[str]
    hashes: np.ndarray
    distances: np.ndarray
    samples: frozenset[tuple[str, str]]
    """Pairs of shard and key; each local shard where it lies (`shard_place`)."""
    fingerprint: str
    """Hash of the entries as the list has them, independent of their order in the file."""

    @property
    def reads_images(self) -> bool:
        """Whether some entries can only be matched by reading the image."""
        return bool(self.digests) or len(self.hashes) > 0

    @property
    def named(self) -> frozenset[str]:
        """The keys of all entries that name samples, some of them in one shard only."""
        return self.keys | {key for _, key in self.samples}

    def __len__(self) -> int:
        return len(self.keys) + len(self.digests) + len(self.hashes) + len(self.samples)

    def has_key(self, key: str, shard: str) -> bool:
        """Looks up a sample by its key, and by its key and shard."""
        return key in self.keys or (bool(self.samples) and (shard_place(shard), key) in self.samples)

    def has_bytes(self, data: bytes) -> bool:
        """Looks up an encoded image."""
        return bool(self.digests) and hashlib.sha256(data).hexdigest() in self.digests

    def has_pixels(self, image: Tensor) -> bool:
        """Looks up a decoded image: [3 H W] uint8."""
        if not len(self.hashes):
            return False
        return bool((differing_bits(self.hashes, perceptual_hash(image)) <= self.distances).any())


def shard_place(shard: str) -> str:
    """Returns the one name of a shard: of a local file its absolute path without links, else `shard` itself.

    A run may be started in another folder, or name its shards by another path, than the one before.
    """
    remote = "://" in shard or shard.startswith("pipe:") or not shard
    return shard if remote else _without_links(os.path.abspath(shard))


_folder_without_links = functools.lru_cache(2**12)(os.path.realpath)
_without_links = functools.lru_cache(2**16)(functools.partial(without_links, folder_of=_folder_without_links))


def load_skip_list(path: str | Path) -> SkipList:
    """Reads a skip list. Raises: DataError that names the file, and the malformed line."""
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"skip list '{file}' cannot be read: {error}; make one with `flava-ds prepare skiplist`"
        ) from error
    found: dict[str, list[str]] = {kind: [] for kind in _FORMS}
    for number, line in enumerate(lines, 1):
        entry = " ".join(line.split("#", 1)[0].split())
        if not entry:
            continue
        kind, _, value = entry.partition(" ")
        if kind not in _FORMS or not re.fullmatch(_FORMS[kind], value):
            raise DataError(
                f"skip list '{file}', line {number}: '{line.strip()[:80]}' is not one of 'key KEY', "
                "'sha256 HEX', 'phash HEX [BITS]', 'sample ...'"
            )
        found[kind].append(value)
    keys, digests = frozenset(found["key"]), frozenset(found["sha256"])
    hashes = [value.split() for value in found["phash"]]
    pairs = [(int(value[0], 16), int(value[1]) if len(value) > 1 else 0) for value in hashes]
    listed: dict[str, set[str]] = {}
    for shard, key in map(str.split, found["sample"]):
        listed.setdefault(unquote(shard), set()).add(unquote(key))
    places = {shard: shard_place(shard) for shard in listed}
    return SkipList(
        keys=keys,
        digests=digests,
        hashes=np.array([value for value, _ in pairs], dtype=np.uint64),
        distances=np.array([bits for _, bits in pairs], dtype=np.uint8),
        samples=frozenset((places[shard], key) for shard, members in listed.items() for key in members),
        fingerprint=_fingerprint(keys, digests, pairs, listed),
    )


def _fingerprint(
    keys: Iterable[str], digests: Iterable[str], pairs: Iterable[tuple[int, int]], listed: dict[str, set[str]]
) -> str:
    """Hashes the entries: keys, digests, hashes with their distances, and the listed keys of each shard.

    That is the hash of repr() of the four sorted lists, which checkpoints hold, without the whole text of a
    long list in memory.
    """
    digest = hashlib.sha256(f"({sorted(keys)}, {sorted(digests)}, {sorted(pairs)}, [".encode())
    separator = ""
    for shard in sorted(listed):
        samples = repr([(shard, key) for key in sorted(listed[shard])])
        digest.update(f"{separator}{samples[1:-1]}".encode())
        separator = ", "
    digest.update(b"])")
    return digest.hexdigest()[:16]


def perceptual_hash(image: Tensor) -> int:
    """Hashes an image's content: another size or encoding of it differs in only a few of the 64 bits.

    Shapes:
        image  [3 H W]  uint8
    Source: the pHash of Zauner (2010), as computed by the imagehash package, with an antialiased bilinear
    filter.
    """
    small = interpolate(
        image[None].contiguous(memory_format=torch.channels_last),
        size=(_SIDE, _SIDE),
        mode="bilinear",
        antialias=True,
    )
    red, green, blue = small[0].numpy().astype(np.float64)
    luminance = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    waves = _waves()
    # without rounding, floating-point noise would decide the bits of flat images
    low = np.round(waves @ luminance @ waves.T, 3)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def differing_bits(hashes: np.ndarray, other: int) -> np.ndarray:
    """Counts the bits in which each hash differs from `other`: [n] uint64 -> [n] uint8."""
    return np.bitwise_count(hashes ^ np.uint64(other))


@functools.cache
def _waves() -> np.ndarray:
    """Returns the lowest rows of the DCT-II matrix: [8 32] float64."""
    u, x = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * u * (2 * x + 1) / (2 * _SIDE))
