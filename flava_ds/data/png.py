"""The chunks of a PNG: which of them decide its pixels, and a copy without all others.

Texts and colour profiles may inflate to any size, carry names that a library prints, and be damaged without
any harm to the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DECIDES = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
"""Header, colours, transparency, pixels, the end, and which side is up."""
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


def plain(data: bytes) -> bytes:
    """Returns the picture without the chunks that do not decide its pixels, nor a transparent colour: libpng
    warns of some, and decodes none.
    """
    parts, all_decide = [SIGNATURE], True
    deciding = _DECIDES if data[25] == 3 else _DECIDES - {b"tRNS"}
    for kind, start, end in chunks(data):
        if kind in deciding:
            parts.append(data[start:end])
        else:
            all_decide = False
        if kind == b"IEND":
            break
    return data if all_decide else b"".join(parts)
