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


def is_transparent(data: bytes) -> bool:
    """Says whether a palette or a colour has transparency: a tRNS chunk before the pixels."""
    for kind, _, _ in chunks(data):
        if kind in (b"tRNS", b"IDAT"):
            return kind == b"tRNS"
    return False


def plain(data: bytes) -> bytes:
    """Returns the picture without the chunks that do not decide its pixels."""
    parts, all_decide = [SIGNATURE], True
    for kind, start, end in chunks(data):
        if kind in _DECIDES:
            parts.append(data[start:end])
        else:
            all_decide = False
        if kind == b"IEND":
            break
    return data if all_decide else b"".join(parts)
