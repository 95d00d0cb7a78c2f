"""Reads the headers of a tar: member names and offsets. Extracts, decompresses and unpickles nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from flava_ds.storage import faults
from flava_ds.storage.files import Readable

BLOCK = 512
_MAX_EXTENSION_BYTES = 2**20
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
"""Magic bytes of gzip, bzip2, xz, zstd and zip files."""
_RECORD, _SIZE = re.compile(rb"([0-9]{1,9}) "), re.compile(rb"[0-9]{1,18}")


class Member(NamedTuple):
    """A regular file inside a tar."""

    name: bytes
    offset: int
    size: int


def tar_members(file: Readable, found: Counter[str]) -> Iterator[Member]:
    """Yields the regular files of a tar in order; stops at the first damage and counts it in `found`.

    Reads ustar, GNU long names and base-256 sizes, and pax `path` and `size` records. Skips links, folders,
    devices and sparse files, and zeros between members, as in tars that were joined with cat.
    """
    position, end, name, size, zeros = 0, file.size, None, None, False
    while position + BLOCK <= end:
        header = file.pread(BLOCK, position)
        if len(header) < BLOCK:  # end of a pipe, whose size is unknown until then
            break
        if not header.strip(b"\0"):
            position, zeros = position + BLOCK, True
            continue
        if zeros:
            found[faults.ZEROS] += 1
        zeros, length = False, _number(header[124:136])
        if length is None or not _checksum_holds(header):
            packed = position == 0 and header.startswith(_PACKED)
            found[faults.COMPRESSED_SHARD if packed else faults.BROKEN_HEADER] += 1
            return
        kind, position = header[156:157], position + BLOCK
        if kind == b"S" and header[482]:  # of a sparse file: further blocks of holes before the bytes
            while (more := file.pread(BLOCK, position))[504:505] == b"\1":
                position += BLOCK
            position += len(more)
        extension = kind in b"xLgK"
        if not extension and size is not None:
            length = size
        if position + length > end:
            found[faults.TRUNCATED_SHARD] += 1
            return
        if extension:
            body = file.pread(min(length, _MAX_EXTENSION_BYTES), position)
            if kind == b"L":
                name = body.rstrip(b"\0")
            elif kind == b"x":
                name, size = _pax(body, name, size)
        else:
            if kind in (b"0", b"\0", b"7"):
                yield Member(name or _name(header), position, length)
            name, size = None, None
        position += -(-length // BLOCK) * BLOCK
    if not zeros:  # a complete tar ends with blocks of zeros
        found[faults.TRUNCATED_SHARD] += 1


def _checksum_holds(header: bytes) -> bool:
    """Checks the header's checksum, which counts its own field as spaces."""
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32


def _number(field: bytes) -> int | None:
    """Parses an octal or GNU base-256 number; None if it is neither, or negative."""
    if field[0] & 0x80:
        return None if field[0] & 0x40 else int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    # int() accepts signs and underscores, and a negative size would point back at its own header
    if digits.translate(None, b"01234567"):
        return None
    return int(digits, 8) if digits else 0


def _name(header: bytes) -> bytes:
    """Joins the ustar prefix and the name; GNU headers store times in place of the prefix."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax(body: bytes, name: bytes | None, size: int | None) -> tuple[bytes | None, int | None]:
    """Returns name and size, updated from the 'LENGTH KEY=VALUE' records of a pax header."""
    start = 0
    while match := _RECORD.match(body, start):
        end = start + int(match[1])
        if not match.end() < end <= len(body):
            break
        key, _, value = body[match.end() : end - 1].partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size" and _SIZE.fullmatch(value):
            size = int(value)
        start = end
    return name, size
