"""A picture that is cut off is found without decoding, and what is refused no decoder takes."""

import io

import numpy as np
import pytest
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
