"""The chunks of a PNG: which of them decide its pixels, whether these are whole, and a copy without others.

Texts and colour profiles may inflate to any size, carry names that a library prints, and be damaged without
any harm to the picture.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IN_FRONT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf"})
"""Header, colours, transparency, and which side is up."""
_MAY_BE_LEFT_OUT = 0x20
"""This bit of a kind's first letter: a lower-case one."""
_FRAME = 12
"""Bytes of a chunk's length, kind and checksum."""
_PALETTE = 3
_OPAQUE = bytes.fromhex("00000001 74524e53 ff 6de437eb")
"""A tRNS of one opaque colour, for a palette whose own does not fit: without any, a decoder that is asked for
alpha leaves it to chance.
"""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""By color type."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of each pass the first column and row, and the steps to the next ones."""
_LAST_FILTER = 4
_LONGEST = 1_000_000
"""libpng's own limit of a side."""
_PIECE = 2**20
_MOST_CHUNKS = 100_000


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields each chunk's type, start and end, up to the last one, which may end beyond the file.

    Raises: SampleFault 'undecodable' for a file of more chunks than pictures have.
    """
    start = len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        kind, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4], "big")
        if len(kind) < 4:
            return
        yield kind, start, end
        start = end
    raise SampleFault(faults.UNDECODABLE, f"PNG of more than {_MOST_CHUNKS} chunks")


def has_all_pixels(data: bytes) -> bool:
    """Returns whether the file goes on behind its last chunk of pixels; which may be damaged."""
    ends = [end for kind, _, end in chunks(data) if kind == b"IDAT"]
    return bool(ends) and ends[-1] + 8 <= len(data)  # length and kind of the next one


def transparency(data: bytes) -> bytes:
    """Returns the body of the tRNS chunk before the pixels, empty without one: the alpha of a palette's
    colours, or the one transparent colour.
    """
    for kind, start, end in chunks(data):
        if kind in (b"tRNS", b"IDAT"):
            return data[start + 8 : end - 4] if kind == b"tRNS" else b""
    return b""


def transparent_color(data: bytes) -> tuple[int, int, int] | None:
    """Returns the transparent colour of a picture without palette or alpha, None if there is none.

    Red, green and blue are at the depth that torchvision decodes to: 16 bits, or 8 to which grey of fewer
    bits is stretched.
    """
    depth, color_type, body = data[24], data[25], transparency(data)
    if len(body) != {0: 2, 2: 6}.get(color_type) or depth not in (1, 2, 4, 8, 16):
        return None  # libpng ignores a tRNS of another length, and refuses other depths
    most = 2**depth - 1
    stretch = 255 // most if depth < 8 else 1
    shades = [(body[at] << 8 | body[at + 1]) & most for at in range(0, len(body), 2)]
    red, green, blue = (shade * stretch for shade in (shades if color_type == 2 else 3 * shades))
    return red, green, blue


def plain(data: bytes) -> bytearray:
    """Returns a PNG of the same pixels that cannot fail to decode: torchvision 0.29 ends the process wherever
    libpng reports an error. Damage is found here; what is left are a header that is right, chunks that decide
    the pixels, and the pixels as they were filtered, stored without compression.

    Raises: ValueError that says what is damaged.
    """
    header = _Header(*struct.unpack(">IIBBBBB", data[16:29]))
    header.check()
    parts, pixels = _parts(data, header.color_type)
    out = bytearray(SIGNATURE + b"".join(parts))
    _append(out, b"IDAT", _stored(_inflated(pixels, header)))
    _append(out, b"IEND", ())
    return out


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    color_type: int
    compression: int
    filtering: int
    interlaced: int

    def check(self) -> None:
        """Raises ValueError for what libpng refuses."""
        if self.depth not in _DEPTHS.get(self.color_type, ()):
            raise ValueError(f"color type {self.color_type} with a depth of {self.depth} bits")
        if self.compression or self.filtering or self.interlaced > 1:
            raise ValueError("unknown compression, filter or interlacing")
        if max(self.width, self.height) > _LONGEST:
            raise ValueError(f"a side of more than {_LONGEST} pixels")

    def passes(self) -> Iterator[tuple[int, int]]:
        """Yields how many rows a pass has, and the bytes of one with its filter; no pass without pixels."""
        bits = _CHANNELS[self.color_type] * self.depth
        for x, y, right, down in _ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(self.width - x) // right), -(-(self.height - y) // down)
            if columns > 0 and rows > 0:
                yield rows, 1 + (columns * bits + 7) // 8


def _parts(data: bytes, color_type: int) -> tuple[list[bytes], bytes]:
    """Returns the chunks in front of the pixels that decide about them, and the compressed pixels."""
    found: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    wanted = _IN_FRONT if color_type == _PALETTE else _IN_FRONT - {b"PLTE", b"tRNS"}
    for kind, start, end in chunks(data):
        if pixels and kind != b"IDAT":
            break
        if kind != b"IDAT" and kind not in wanted:
            continue
        is_whole = zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if end > len(data) or not is_whole:
            if kind[0] & _MAY_BE_LEFT_OUT:
                continue
            raise ValueError(f"{kind.decode()} is damaged or cut off")
        if kind == b"IDAT":
            pixels.append(data[start + 8 : end - 4])
        elif kind not in found:
            found[kind] = data[start:end]
        elif not kind[0] & _MAY_BE_LEFT_OUT:
            raise ValueError(f"more than one {kind.decode()}")
    if len(found[b"IHDR"]) != _FRAME + 13:
        raise ValueError("IHDR of another length")
    if color_type == _PALETTE:
        colors, rest = divmod(len(found.get(b"PLTE", b"")) - _FRAME, 3)
        if rest or not 1 <= colors <= 256:
            raise ValueError("PLTE is missing or of another length")
        if not 1 <= len(found.get(b"tRNS", b"")) - _FRAME <= colors:
            found[b"tRNS"] = _OPAQUE if transparency(data) else b""
    return [found.get(kind, b"") for kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf")], b"".join(pixels)


def _inflated(pixels: bytes, header: _Header) -> bytes:
    """Returns the filtered rows of all passes."""
    passes, inflater = list(header.passes()), zlib.decompressobj()
    size = sum(rows * length for rows, length in passes)
    try:
        out = inflater.decompress(pixels, size)
        inflater.decompress(inflater.unconsumed_tail, 1)  # compares the checksum behind the last row
    except zlib.error as error:
        raise ValueError(f"IDAT cannot be inflated: {error}") from error
    if len(out) < size:
        raise ValueError(f"IDAT has {len(out):,} of {size:,} bytes")
    filters, start = np.frombuffer(out, np.uint8), 0
    for rows, length in passes:
        if filters[start : start + rows * length : length].max() > _LAST_FILTER:
            raise ValueError("IDAT has a row with an unknown filter")
        start += rows * length
    return out


def _stored(pixels: bytes) -> Iterator[bytes]:
    """Yields a zlib stream without compression, a piece at a time."""
    stream, rest = zlib.compressobj(0), memoryview(pixels)
    for start in range(0, len(pixels), _PIECE):
        yield stream.compress(rest[start : start + _PIECE])
    yield stream.flush()


def _append(out: bytearray, kind: bytes, pieces: Iterable[bytes]) -> None:
    """Appends a chunk with its length and checksum."""
    start = len(out)
    out += bytes(4) + kind
    for piece in pieces:
        out += piece
    out[start : start + 4] = (len(out) - start - 8).to_bytes(4, "big")
    with memoryview(out) as written:
        checksum = zlib.crc32(written[start + 4 :])
    out += checksum.to_bytes(4, "big")
