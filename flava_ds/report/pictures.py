"""Pixels and encoded images as data URIs."""

from __future__ import annotations

import base64
import io

import torch
from einops import repeat
from torch import Tensor

from flava_ds.data.decode import read_header

MASK_COLOR = (196, 190, 182)
"""Colour of masked patches: a warm grey, distinct from white paper and black ink."""


def uri_of_bytes(data: bytes) -> str:
    """Wraps a JPEG, PNG or WebP file unchanged."""
    return f"data:image/{read_header(data).format.lower()};base64,{base64.b64encode(data).decode()}"


def uri_of_pixels(pixels: Tensor) -> str:
    """Encodes pixels losslessly, as WebP.

    Shapes:
        pixels  [3 H W]  uint8, or floats in [0, 1]
    """
    from PIL import Image

    if pixels.is_floating_point():
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(stream, "WEBP", lossless=True, method=6)
    return uri_of_bytes(stream.getvalue())


def cover(pixels: Tensor, mask: Tensor) -> Tensor:
    """Paints masked patches grey.

    Shapes:
        pixels  [3 H W]  uint8
        mask    [n]      bool, a square grid row by row
    """
    grid = round(mask.numel() ** 0.5)
    hidden = repeat(
        mask.view(grid, grid), "gh gw -> (gh p) (gw q)", p=pixels.shape[1] // grid, q=pixels.shape[2] // grid
    )
    return torch.where(hidden, torch.tensor(MASK_COLOR, dtype=torch.uint8)[:, None, None], pixels)
