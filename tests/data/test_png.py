"""Damaged PNGs are refused before libpng sees them, whose errors end the process in torchvision 0.29."""

import random
import struct
import zlib

import numpy as np
import pytest
import torch

from flava_ds.data import png
from flava_ds.data.decode import decode_image
from flava_ds.storage.faults import SampleFault

SIZE = WIDTH, HEIGHT = 7, 5
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, 1 + 3 * WIDTH), dtype=np.uint8)
PIXELS[:, 0] = range(HEIGHT)  # every filter
COLORS = bytes(range(48))
INDEXES = bytes([0, *range(WIDTH)]) * HEIGHT
Chunks = list[tuple[bytes, bytes]]


def header(color_type=2, depth=8, width=WIDTH, height=HEIGHT, method=(0, 0, 0)) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, *method)


def idat(pixels, **options) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(bytes(pixels), **options)


def file_of(*chunks, checksum=zlib.crc32) -> bytes:
    """Joins chunks; all have a checksum that holds, unless it is made in another way."""
    parts = (
        struct.pack(">I", len(b)) + kind + b + struct.pack(">I", checksum(kind + b)) for kind, b in chunks
    )
    return png.SIGNATURE + b"".join(parts)


RGB = [header(), idat(PIXELS.tobytes()), (b"IEND", b"")]
PALETTE = [header(3), (b"PLTE", COLORS), idat(INDEXES), (b"IEND", b"")]
CUT = idat(PIXELS.tobytes())[1]
DAMAGED = {
    "IDAT is damaged or cut off": [
        file_of(*RGB[:1]) + file_of(RGB[1], checksum=lambda data: 7)[8:],
        file_of(*RGB)[:-20],
    ],
    "PLTE is damaged or cut off": [
        file_of(header(3)) + file_of(PALETTE[1], checksum=lambda data: 7)[8:] + file_of(*PALETTE[2:])[8:]
    ],
    "IDAT cannot be inflated": [
        file_of(header(), (b"IDAT", b"no zlib stream")),
        file_of(header(), (b"IDAT", CUT[:-1] + bytes([CUT[-1] ^ 1]))),  # its own checksum
    ],
    "IDAT has 0 of 110 bytes": [file_of(header(), (b"IEND", b"")), file_of(header())],
    "IDAT has 66 of 110 bytes": [
        file_of(header(), idat(PIXELS[:3].tobytes())),
        file_of(header(), idat(PIXELS[:3].tobytes()), (b"eXIf", b""), idat(PIXELS[3:].tobytes())),
    ],
    "IDAT has a row with an unknown filter": [file_of(header(), idat(b"\5" + PIXELS.tobytes()[1:]))],
    "more than one IHDR": [file_of(header(), *RGB)],
    "more than one PLTE": [file_of(*PALETTE[:2], *PALETTE[1:])],
    "IHDR of another length": [file_of((b"IHDR", header()[1] + b"\0"), *RGB[1:])],
    "PLTE is missing or of another length": [
        file_of(header(3), idat(INDEXES)),
        file_of(header(3), (b"PLTE", COLORS[:-1]), idat(INDEXES)),
        file_of(header(3), (b"PLTE", b""), idat(INDEXES)),
        file_of(header(3), (b"PLTE", bytes(771)), idat(INDEXES)),
        file_of(header(3), idat(INDEXES), (b"PLTE", COLORS)),
    ],
    "color type 5 with a depth of 8 bits": [file_of(header(5), *RGB[1:])],
    "color type 2 with a depth of 4 bits": [file_of(header(2, 4), *RGB[1:])],
    "unknown compression, filter or interlacing": [
        file_of(header(method=method), *RGB[1:]) for method in ((1, 0, 0), (0, 1, 0), (0, 0, 2))
    ],
    "a side of more than 1000000 pixels": [file_of(header(width=1_000_001, height=1), *RGB[1:])],
}


@pytest.mark.parametrize("words", DAMAGED)
def test_damage_is_named_and_libpng_prints_nothing(words, capfd):
    for data in DAMAGED[words]:
        with pytest.raises(SampleFault, match=rf"^undecodable \(PNG: {words}"):
            decode_image(data)
    assert not any(capfd.readouterr())


def test_what_does_no_harm_is_left_out(capfd):
    """Pixels in several chunks, behind too much of them, text, and transparency that does not fit."""
    picture = decode_image(file_of(*RGB))
    assert picture.shape == (3, HEIGHT, WIDTH)
    kind, body = RGB[1]
    pieces = [(kind, body[:9]), (kind, b""), (kind, body[9:])]
    for other in (
        file_of(header(), (b"tEXt", b"a\0b"), (b"ABCD", b""), *pieces),
        file_of(header(), idat(PIXELS.tobytes() + b"more", level=0), (b"IEND", b"")),
        file_of(header(), (b"PLTE", b"1"), *RGB[1:]),
        file_of(header()) + file_of((b"eXIf", b"II*\0"), checksum=lambda data: 7)[8:] + file_of(*RGB[1:])[8:],
    ):
        assert torch.equal(decode_image(other), picture)
    indexed = decode_image(file_of(*PALETTE))
    for alpha in (b"", bytes(17)):
        assert torch.equal(decode_image(file_of(*PALETTE[:2], (b"tRNS", alpha), *PALETTE[2:])), indexed)
    early, usual = (
        file_of(PALETTE[0], (b"tRNS", bytes(16)), *PALETTE[1:]),
        file_of(*PALETTE[:2], (b"tRNS", bytes(16)), *PALETTE[2:]),
    )
    assert (decode_image(early) == 255).all() and (decode_image(usual) == 255).all()
    assert not any(capfd.readouterr())


def changed(chunks: Chunks, by: random.Random) -> bytes:
    """A file of chunks of which one was changed, left out, cut or written twice, with checksums that hold."""
    chunks, at = [*chunks], by.randrange(len(chunks))
    kind, body = chunks[at]
    spot, way = by.randrange(len(body) + 1), by.randrange(5)
    if way == 0:
        chunks[at] = kind, body[:spot] + by.randbytes(1) + body[spot + 1 :]
    elif way == 1:
        del chunks[at]
    elif way == 2:
        chunks[at] = kind, body[:spot]
    elif way == 3:
        chunks.insert(by.randrange(len(chunks)), (kind, body))
    else:
        chunks.insert(at, (by.choice([b"PLTE", b"tRNS", b"eXIf", b"IDAT"]), by.randbytes(spot)))
    return file_of(*chunks)


def test_no_change_ends_the_process(capfd):
    outcomes = set()
    for number in range(600):
        data = changed((RGB, PALETTE)[number % 2], random.Random(number))
        try:
            outcomes.add(decode_image(data, max_pixels=10**5).shape[0])
        except SampleFault as fault:
            outcomes.add(fault.reason)
    assert outcomes == {3, "undecodable", "too many pixels"}
    assert "libpng error" not in capfd.readouterr().err
