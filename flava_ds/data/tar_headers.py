"""Reads the headers of a tar once: member names and where their bytes lie. Nothing is extracted, decompressed or unpickled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from flava_ds.data.storage import Readable

BLOCK = 512
MAX_MEMBER_BYTES = 256 * 2**20
_MAX_EXTENSION_BYTES = 2**20


class Member(NamedTuple):
    """A regular file inside a tar."""

    name: bytes
    offset: int
    size: int


def tar_members(file: Readable, faults: Counter[str]) -> Iterator[Member]:
    """Yields the regular files of a tar in order; stops at the first damage and counts it in `faults` by reason.

    Reads ustar, GNU long names and base-256 sizes, and pax `path` and `size` records. Links, folders and devices are passed over.
    """
    position, end, name, size = 0, file.size, None, None
    if end < BLOCK:
        faults["truncated shard"] += 1
    while position + BLOCK <= end:
        header = file.pread(BLOCK, position)
        if not header.strip(b"\0"):
            return
        length = _number(header[124:136])
        if length is None or not _checksum_holds(header):
            faults["broken header"] += 1
            return
        kind, position = header[156:157], position + BLOCK
        extension = kind in b"xLgK" and kind != b""
        if not extension and size is not None:
            length = size
        if position + length > end:
            faults["truncated shard"] += 1
            return
        if extension:
            body = file.pread(min(length, _MAX_EXTENSION_BYTES), position)
            if kind == b"L":
                name = body.rstrip(b"\0")
            elif kind == b"x":
                name, size = _pax(body, name, size)
        else:
            if kind in (b"0", b"\0", b"7"):
                if length > MAX_MEMBER_BYTES:
                    faults["member too large"] += 1
                else:
                    yield Member(name or _name(header), position, length)
            name, size = None, None
        position += -(-length // BLOCK) * BLOCK


def _checksum_holds(header: bytes) -> bool:
    """Compares the header's checksum, which is taken with the checksum field itself as spaces."""
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32


def _number(field: bytes) -> int | None:
    """Parses an octal or GNU base-256 number; None when it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _name(header: bytes) -> bytes:
    """Joins the ustar prefix and the name; GNU headers keep times where the prefix would be."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax(body: bytes, name: bytes | None, size: int | None) -> tuple[bytes | None, int | None]:
    """Takes `path` and `size` out of 'LENGTH KEY=VALUE' records, and leaves what they do not set."""
    while body:
        digits, _, rest = body.partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(body):
            break
        key, _, value = rest[: int(digits) - len(digits) - 2].partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size" and value.isdigit():
            size = int(value)
        body = body[int(digits) :]
    return name, size
