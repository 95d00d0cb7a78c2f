"""Decodes image files to uint8 RGB tensors. Checks the size in the header before decoding anything."""

from __future__ import annotations

import functools
import importlib.util
import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flava_ds.data import png
from flava_ds.errors import DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault

MAX_PIXELS = 2**26
"""Largest image that is decoded: 64 Mi pixels, 192 MiB as RGB. Training uses data.max_image_pixels."""
_WEBP_EXIF, _WEBP_ANIMATION = 0x08, 0x02
_OTHERS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"<svg": "SVG",
    b"<htm": "web page",
    b"<!DO": "web page",
}
"""Other files that scraped shards contain in place of images, by their first bytes."""
MAX_SCANS = 200
"""Most scans of a JPEG, including those of its thumbnails; progressive files have about ten."""
_MAX_SEGMENTS = 10_000
_STRIP_PIXELS = 2**20
_RGB, _RGB_ALPHA = 3, 4  # of torchvision.io.ImageReadMode
_WHERE = re.compile(r"\w+, \S+\.cpp:\d+, ")  # torchvision names its own source first


class ImageHeader(NamedTuple):
    """The header of an encoded image.

    `alpha` marks a stored alpha channel or palette with transparency, `transparent` is the one transparent
    colour of a PNG (png.transparent_color), `rare` marks an image that only Pillow decodes correctly.
    """

    format: str
    width: int
    height: int
    alpha: bool = False
    rare: bool = False
    transparent: tuple[int, int, int] | None = None


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decodes JPEG, PNG or WebP of any mode to RGB.

    Blends transparency over white, applies the EXIF orientation and scales 16 bits to 8. The bytes determine
    the format, not the member's name.

    Shapes:
        out  [3 H W]  uint8
    Raises: SampleFault with the reason.
    """
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise SampleFault(
            faults.TOO_MANY_PIXELS, f"{header.width} x {header.height}, at most {max_pixels} in all"
        )
    if header.width < 1 or header.height < 1:
        raise SampleFault(faults.UNDECODABLE, f"{header.format} of {header.width} x {header.height} pixels")
    try:
        if header.rare:
            return _decode_with_pillow(data, header)
        encoded = png.plain(data) if header.format == "PNG" else bytearray(data)
        mode = _RGB_ALPHA if header.alpha else _RGB
        image = decoder()(torch.frombuffer(encoded, dtype=torch.uint8), mode, True)
        del encoded  # a PNG's is as large as the picture
    except Exception as error:  # Pillow's plugins raise all kinds of errors on damaged files
        said = _WHERE.sub("", " ".join(str(error).split()))[:200] or type(error).__name__
        raise SampleFault(faults.UNDECODABLE, f"{header.format}: {said}") from error
    if image.dtype == torch.uint16 or header.transparent:
        image = _by_strips(image, functools.partial(_plain, transparent=header.transparent), len(image))
    return over_white(image) if header.alpha else image


@functools.cache
def decoder() -> Callable[[Tensor, int, bool], Tensor]:
    """Loads torchvision's decoder on first use: of bytes, ImageReadMode, whether to apply the orientation.

    Nothing else of torchvision is loaded, unless it is laid out in another way: it imports torch's compiler
    and Triton, which takes two seconds. Call it before forking.
    """
    found = importlib.util.find_spec("torchvision")
    library = Path(*found.submodule_search_locations or ()) / "image.so" if found else Path()
    if library.is_file() and "torchvision" not in sys.modules:
        torch.ops.load_library(library)
    else:
        import torchvision.io  # noqa: F401
    return torch.ops.image.decode_image


def check_decoded(image: Tensor) -> None:
    """Raises DataError unless a tensor is a decoded image: [3 H W] uint8."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise DataError(
            f"an image is a tensor of {image.dtype} {list(image.shape)}; give uint8 [3, height, width]"
        )


def over_white(image: Tensor) -> Tensor:
    """Blends an image with alpha over white, rounded to nearest: [4 H W] uint8 -> [3 H W] uint8."""

    def blended(strip: Tensor) -> Tensor:
        alpha = strip[3:].to(torch.int32)
        return (strip[:3].to(torch.int32) * alpha + 255 * (255 - alpha) + 127) // 255

    return _by_strips(image, blended, 3)


def _plain(strip: Tensor, transparent: tuple[int, int, int] | None) -> Tensor:
    """Scales 16 bits to 8 and makes a transparent colour white: [c h W] uint8 or uint16 -> [c h W] int32."""
    wide = strip.to(torch.int32)
    out = to_8_bits(wide) if strip.dtype == torch.uint16 else wide.clone()
    if transparent is not None:
        out[:, (wide == torch.tensor(transparent)[:, None, None]).all(0)] = 255
    return out


def to_8_bits(wide: Tensor) -> Tensor:
    """Scales numbers of 16 bits to 8, rounded to nearest: [...] int32 -> [...] int32."""
    return (wide * 255 + 32767) // 65535


def _by_strips(image: Tensor, function: Callable[[Tensor], Tensor], channels: int) -> Tensor:
    """Applies to some rows at a time what needs numbers of four bytes: [c H W] -> [channels H W] uint8."""
    out = torch.empty(channels, *image.shape[1:], dtype=torch.uint8)
    rows = max(1, _STRIP_PIXELS // image.shape[2])
    for start in range(0, image.shape[1], rows):
        out[:, start : start + rows] = function(image[:, start : start + rows])
    return out


def read_header(data: bytes) -> ImageHeader:
    """Reads the format and size of an encoded image.

    Raises: SampleFault 'truncated' when the bytes end inside the header, 'undecodable' when they are not a
    JPEG, PNG or WebP.
    """
    if not data:
        raise SampleFault(faults.TRUNCATED, "no bytes")
    try:
        if data[:8] == png.SIGNATURE:
            return _png_header(data)
        if data[:2] == b"\xff\xd8":
            return _jpeg_header(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_header(data)
    except IndexError as error:
        raise SampleFault(faults.TRUNCATED, f"{len(data)} bytes end inside the header") from error
    if data[4:8] == b"ftyp":
        raise SampleFault(faults.UNDECODABLE, "an AVIF, HEIC or video; only JPEG, PNG and WebP are decoded")
    other = next(
        (f"a {name}" for start, name in _OTHERS.items() if data.startswith(start)),
        f"begins with {data[:8].hex()}",
    )
    raise SampleFault(faults.UNDECODABLE, f"{other}; only JPEG, PNG and WebP are decoded")


def read_whole(data: bytes) -> ImageHeader:
    """Reads the header of an encoded image, and that the file is not cut off behind it. Decodes nothing, so
    other damage to the pixels is not found.

    Raises: SampleFault as read_header does, and 'truncated' when the bytes end before the pixels.
    """
    header = read_header(data)
    if header.format == "JPEG":
        is_whole = data.rfind(b"\xff\xd9", _jpeg_scan(data)[1]) >= 0  # no pixel is stored in these two bytes
    elif header.format == "PNG":
        is_whole = png.has_all_pixels(data)
    else:
        is_whole = 8 + int.from_bytes(data[4:8], "little") <= len(data)
    if not is_whole:
        raise SampleFault(
            faults.TRUNCATED, f"{header.format} of {len(data)} bytes, which end before its pixels"
        )
    return header


def _png_header(data: bytes) -> ImageHeader:
    """Reads IHDR, and the transparency that torchvision ignores."""
    color_type = data[25]
    if data[12:16] != b"IHDR":
        raise SampleFault(
            faults.UNDECODABLE, "PNG that does not begin with IHDR: its decoder would look for another"
        )
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    return ImageHeader(
        "PNG",
        width,
        height,
        alpha=color_type in (4, 6) or (color_type == 3 and bool(png.transparency(data))),
        transparent=png.transparent_color(data),
    )


def _jpeg_header(data: bytes) -> ImageHeader:
    frame, scan = _jpeg_scan(data)
    return _jpeg_frame(data, *frame, scan=scan)


def _jpeg_scan(data: bytes) -> tuple[tuple[int, int], int]:
    """Walks the segments; returns the frame's marker and place, and the place of the first scan."""
    position, frame = 2, None
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0:
            raise IndexError
        while data[position] == 0xFF:
            position += 1
        marker, position = data[position], position + 1
        # markers without a length; FF 00 included, because libjpeg skips it here, too
        if marker in (0x00, 0x01, *range(0xD0, 0xD8)):
            continue
        if marker in (0xD9, 0xDA):
            if frame is None:
                raise SampleFault(faults.UNDECODABLE, "JPEG without a frame")
            return frame, position
        if frame is None and 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker, position
        position += max(2, data[position] << 8 | data[position + 1])
    raise SampleFault(faults.UNDECODABLE, f"JPEG of more than {_MAX_SEGMENTS} segments before its first scan")


def _jpeg_frame(data: bytes, marker: int, frame: int, *, scan: int) -> ImageHeader:
    """Reads the frame's segment and, where decoding would be costly, counts the scans.

    A sequential JPEG whose first scan has all components is decoded in that one scan, so only other files are
    counted.
    """
    one_scan = marker in (0xC0, 0xC1) and data[scan + 2] >= data[frame + 7]
    if not one_scan and data.count(b"\xff\xda") > MAX_SCANS:
        raise SampleFault(
            faults.UNDECODABLE,
            f"JPEG of more than {MAX_SCANS} scans, each of which is decoded over the whole picture",
        )
    return ImageHeader(
        "JPEG", width=data[frame + 5] << 8 | data[frame + 6], height=data[frame + 3] << 8 | data[frame + 4]
    )


def _webp_header(data: bytes) -> ImageHeader:
    """Reads the first chunk: VP8 (lossy), VP8L (lossless) or VP8X (extended).

    torchvision ignores EXIF in WebP and rejects animations, so both go to Pillow.
    """
    chunk = bytes((data[12], data[13], data[14], data[15]))
    if chunk == b"VP8 ":
        return ImageHeader("WebP", (data[26] | data[27] << 8) & 0x3FFF, (data[28] | data[29] << 8) & 0x3FFF)
    if chunk == b"VP8L":
        bits = int.from_bytes(bytes((data[21], data[22], data[23], data[24])), "little")
        return ImageHeader("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, alpha=bool(bits >> 28 & 1))
    if chunk == b"VP8X":
        width, height = (
            1 + (data[start] | data[start + 1] << 8 | data[start + 2] << 16) for start in (24, 27)
        )
        return ImageHeader(
            "WebP",
            width,
            height,
            alpha=bool(data[20] & 0x10),
            rare=bool(data[20] & (_WEBP_EXIF | _WEBP_ANIMATION)),
        )
    raise SampleFault(faults.UNDECODABLE, "WebP with an unknown first chunk")


def _decode_with_pillow(data: bytes, header: ImageHeader) -> Tensor:
    """Decodes what torchvision gets wrong: WebP with EXIF or animation.

    Takes the first frame of an animation.
    """
    with Image.open(io.BytesIO(data)) as picture:
        if picture.size != (header.width, header.height):
            raise ValueError(f"a second header says {picture.width} x {picture.height}")
        rgba = _turned(picture).convert("RGBA")
    return over_white(torch.from_numpy(np.array(rgba)).permute(2, 0, 1)).contiguous()


def _turned(picture: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; a picture whose EXIF cannot be read stays as it is stored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about damaged EXIF
            return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow raises whatever a damaged EXIF leads it to
        return picture
