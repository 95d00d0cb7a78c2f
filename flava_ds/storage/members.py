"""Which members of a shard belong to samples, and to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from flava_ds.storage import faults
from flava_ds.storage.files import Readable
from flava_ds.storage.tar_headers import tar_members

IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")
MAX_IMAGE_BYTES, MAX_OTHER_BYTES = 256 * 2**20, 16 * 2**20
"""Largest members that are read, in bytes: images; captions, metadata, codes and regions, which are read
whole."""
_PICKLED = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "ten", "tenbin", "cbor", "mp"})
_PACKED = frozenset({"gz", "bz2", "xz", "zst", "zip", "tgz", "lzma"})


def sample_members(file: Readable, found: Counter[str]) -> Iterator[tuple[bytes, bytes, str, int, int]]:
    """Yields (name, sample key, suffix, offset, size) of the members of a tar that belong to samples, in
    order. Counts damage and what is refused in `found`.
    """
    for name, offset, size in tar_members(file, found):
        key, suffix = sample_key(name)
        if (reason := _refusal(name, suffix, size)) is not None:
            found[reason] += 1
        elif _allowed(suffix) and key and not key.endswith(b"/"):
            yield name, key, suffix, offset, size


def sample_key(name: bytes) -> tuple[bytes, str]:
    """Splits a member's name at the first dot of its last component into sample key and suffix."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    return folder + slash + stem, suffix.decode("utf-8", "replace").lower()


def _allowed(suffix: str) -> bool:
    """Returns whether members with this suffix are indexed; nothing else in a shard is ever read."""
    return suffix in SUFFIXES or suffix.split(".")[-1] in ("npy", "safetensors")


def _refusal(name: bytes, suffix: str, size: int) -> str | None:
    """Returns why a member is skipped and counted; None if it is read, or ignored without counting.

    A picture or text with a longer suffix is counted: `10.15.jpg` may be the rest of a key that holds dots.
    """
    last = suffix.rpartition(".")[2]
    if last in _PICKLED:
        return faults.PICKLED
    if last in _PACKED:
        return faults.PACKED
    if not _allowed(suffix):
        hidden = name.rpartition(b"/")[2].startswith(b".")
        return faults.DOTTED if last in SUFFIXES and not hidden else None
    if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name:
        return faults.UNSAFE_NAME
    limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_OTHER_BYTES
    return faults.TOO_LARGE if size > limit else None
