"""Renders vector drawings as 64-pixel RGB images on white and encodes them compactly."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import resvg_py
from PIL import Image, ImageOps

SIZE = 64  # pixels per edge
CANVAS = 192  # longer edge in pixels for rendering before cropping
LOSSY_QUALITY = 80
# editors of that time used 90 user units per inch; with resvg's default of 0, a page in mm has no size
DPI = 90.0


def rasterize(svg: str, **size: int) -> Image.Image:
    """Renders an SVG on white. Raises ValueError if resvg rejects it."""
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, dpi=DPI, **size)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def square(picture: Image.Image) -> Image.Image:
    """Fits an image into SIZE x SIZE, padding the shorter edge with white."""
    return ImageOps.pad(picture, (SIZE, SIZE), method=Image.Resampling.LANCZOS, color="white")


def render_icon(svg: str) -> Image.Image:
    """Renders an Iconify drawing; its view box is the frame."""
    picture = rasterize(svg, width=SIZE)
    return picture if picture.size == (SIZE, SIZE) else square(picture)


def render_drawing(data: bytes) -> Image.Image:
    """Renders an openclipart file, cropped to its ink, since most are small on a page.

    Raises: ValueError if the file has no usable size, does not render, or renders as a blank page.
    """
    svg = data.decode("utf-8", errors="replace")
    if "xmlns=" not in svg:
        svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    width, height = _size_of(data)
    longer = {"width": CANVAS} if width >= height else {"height": CANVAS}
    picture = rasterize(svg, **longer)
    ink = ImageOps.invert(picture).getbbox()
    if ink is None or min(ink[2] - ink[0], ink[3] - ink[1]) < CANVAS // 16:
        raise ValueError("a blank or hair-thin drawing")
    picture = square(picture.crop(ink))
    if np.asarray(picture.convert("L"), dtype=np.float32).std() < 12:
        raise ValueError("a drawing without contrast")
    return picture


def _size_of(data: bytes) -> tuple[float, float]:
    """Reads width and height in any unit (only their ratio matters), or the view box."""
    root = ElementTree.fromstring(data)
    found = [edge for key in ("width", "height") if (edge := re.match(r"[\d.]+", root.get(key, "")))]
    if len(found) == 2 and "%" not in root.get("width", "") + root.get("height", ""):
        width, height = (float(edge.group()) for edge in found)
    else:
        _, _, width, height = (
            float(number) for number in re.split(r"[\s,]+", root.get("viewBox", "").strip())
        )
    if not (width > 0 and height > 0 and 1 / 3 <= width / height <= 3):
        raise ValueError(f"an unusable page of {width} x {height}")
    return width, height


def encode(picture: Image.Image) -> bytes:
    """Encodes as WebP, lossless if that is smaller (flat and one-colour drawings)."""
    candidates = []
    for options in ({"lossless": True, "quality": 75, "method": 4}, {"quality": LOSSY_QUALITY, "method": 6}):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **options)
        candidates.append(buffer.getvalue())
    return min(candidates, key=len)


def fingerprint(picture: Image.Image, edge: int = 16) -> np.ndarray:
    """Shrinks an image to a vector for which near-copies are close.

    Shapes:
        returns  [edge * edge * 3]  float32, 0 to 255
    """
    small = picture.resize((edge, edge), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1)
