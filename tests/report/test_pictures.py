"""Pictures survive the way into the page."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from flava_ds.report.pictures import MASK_COLOR, cover, uri_of_bytes, uri_of_pixels


def pixels_of(uri: str) -> tuple[str, torch.Tensor]:
    kind, data = uri.removeprefix("data:").split(";base64,")
    return kind, torch.from_numpy(
        np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    ).permute(2, 0, 1)


def test_pixels_come_back_exactly():
    pixels = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kind, found = pixels_of(uri_of_pixels(pixels))
    assert kind == "image/webp" and torch.equal(found, pixels)
    assert torch.equal(pixels_of(uri_of_pixels(pixels.float() / 255))[1], pixels)


@pytest.mark.parametrize(
    "format, kind", [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_files_are_wrapped_as_what_they_are(format, kind):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, format)
    assert (
        uri_of_bytes(stream.getvalue())
        == f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    )


def test_exactly_the_masked_patches_are_covered():
    pixels = torch.zeros(3, 6, 6, dtype=torch.uint8)
    mask = torch.zeros(9, dtype=torch.bool)
    mask[5] = True  # second row, third column of 3 x 3
    covered = cover(pixels, mask)
    assert covered[:, 2:4, 4:6].flatten(1).unique(dim=1).flatten().tolist() == list(MASK_COLOR)
    assert int((covered != 0).any(0).sum()) == 4
