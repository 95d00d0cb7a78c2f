"""A picture that is cut off is found without decoding, and what is refused no decoder takes."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from flava_ds.data.decode import decode_image, read_header, read_whole
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[0x010E] = "\xff\xd9 as a thumbnail has it"
FORMATS = {
    "jpeg": ("JPEG", {"exif": EXIF.tobytes()[:-20] + b"\xff\xd8\xff\xd9" + EXIF.tobytes()[-20:]}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless": ("WEBP", {"lossless": True}),
}


def encoded(name):
    stream = io.BytesIO()
    kind, options = FORMATS[name]
    NOISE.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_picture_passes_also_with_bytes_behind_it(name):
    data = encoded(name)
    assert read_whole(data) == read_whole(data + b"\0" * 100) == read_header(data)


def test_a_png_that_is_cut_off_between_its_chunks_of_pixels_is_told():
    data = encoded("png")
    start = data.index(b"IDAT") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    pixels, parts = data[start + 8 : end - 4], b""
    for first in range(0, len(pixels), 500):
        body = b"IDAT" + pixels[first : first + 500]
        parts += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    whole = data[:start] + parts + data[end:]
    assert read_whole(whole) and torch.equal(decode_image(whole), decode_image(data))
    for size in range(start + 512, start + 5 * 512):
        with pytest.raises(SampleFault) as caught:
            read_whole(whole[:size])
        assert caught.value.reason == faults.TRUNCATED


@pytest.mark.parametrize("name", FORMATS)
def test_one_that_is_cut_off_is_told_and_cannot_be_decoded(name):
    data, refused = encoded(name), 0
    for size in range(len(data) // 5, len(data), len(data) // 97):
        try:
            read_whole(data[:size])
        except SampleFault as fault:
            assert fault.reason == faults.TRUNCATED and f"{size} bytes" in fault.detail
            refused += 1
            with pytest.raises(SampleFault):
                decode_image(data[:size])
        else:
            decode_image(data[:size])
    assert refused > 70
