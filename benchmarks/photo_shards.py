"""Shards for loader benchmarks: photo-like JPEGs of 500 x 375 from the demo's drawings and a seed.

An image is a cloud with the spectrum of photographs, with drawings pasted at several sizes, under a sensor's
grain. The cost of decoding and resizing depends on pixels and coded bytes: at quality 90 with 4:2:0 these
have 20 to 110 kB, 50 kB on average, like JPEGs of this size from the web.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, QUALITY = 500, 375, 90
_FIELDS, _FIELD_EDGE = 24, 1024
_COLOURS = np.array([[1.0, 0.0, 0.0], [0.92, 0.39, 0.0], [0.85, 0.26, 0.46]])
"""Rows mix independent fields into red, green and blue, correlated as in photographs."""


def photo_shards(folder: Path, count: int = 2000, per_shard: int = 250, seed: int = 0) -> dict[str, float]:
    """Writes shards in img2dataset's layout if missing. Returns samples, shards, mean image bytes."""
    summary = folder / "summary.json"
    wanted = {"samples": count, "shards": -(-count // per_shard), "seed": seed}
    if summary.is_file():
        found = json.loads(summary.read_text(encoding="utf-8"))
        if wanted.items() <= found.items():
            return found
        raise SystemExit(f"error: {folder} holds other shards ({found}); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard, pictures in enumerate(_in_shards(photographs(count, seed, folder / "demo"), per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (picture, caption) in enumerate(pictures):
                total += len(picture)
                for suffix, data in (("jpg", picture), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{shard:05d}{number:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    found = wanted | {
        "mean_bytes": round(total / count),
        "width": WIDTH,
        "height": HEIGHT,
        "quality": QUALITY,
    }
    summary.write_text(json.dumps(found), encoding="utf-8")
    return found


def photographs(count: int, seed: int, demo: Path) -> Iterator[tuple[bytes, str]]:
    """Yields encoded images and their captions; `demo` is the folder of the unpacked demo data."""
    draw = np.random.default_rng(seed)
    drawings = list(_drawings(demo, 2000))
    fields = [_field(draw, exponent) for exponent in np.linspace(1.5, 2.3, _FIELDS)]
    for _ in range(count):
        field = fields[int(draw.integers(_FIELDS))]
        top, left = draw.integers(0, _FIELD_EDGE - HEIGHT), draw.integers(0, _FIELD_EDGE - WIDTH)
        cloud = field[top : top + HEIGHT, left : left + WIDTH] * draw.uniform(25, 70) + draw.uniform(
            70, 180, 3
        )
        picture = Image.fromarray(cloud.clip(0, 255).astype(np.uint8))
        captions = []
        for _ in range(int(draw.integers(2, 7))):
            drawing, caption = drawings[int(draw.integers(len(drawings)))]
            captions.append(caption)
            edge = int(draw.integers(60, 260))
            drawing = drawing.resize((edge, edge), Image.Resampling.BICUBIC).rotate(
                float(draw.uniform(-30, 30))
            )
            pixels = np.asarray(drawing)
            mask = Image.fromarray(((pixels.min(2) < 245) & (pixels.max(2) > 0)).astype(np.uint8) * 255)
            picture.paste(
                drawing, (int(draw.integers(-60, WIDTH - 60)), int(draw.integers(-60, HEIGHT - 60))), mask
            )
        grain = draw.normal(0, draw.uniform(1, 5), (HEIGHT, WIDTH, 1)).astype(np.float32)
        stream = io.BytesIO()
        Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)).save(
            stream, "jpeg", quality=QUALITY
        )
        yield stream.getvalue(), " and ".join(captions[:3])


def _field(draw: np.random.Generator, exponent: float) -> np.ndarray:
    """Draws a unit-variance random field with amplitudes ~ frequency^exponent: [H W 3] float32."""
    rows, columns = np.fft.fftfreq(_FIELD_EDGE)[:, None], np.fft.rfftfreq(_FIELD_EDGE)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    waves = np.exp(2j * np.pi * draw.random((3, *frequency.shape))) * frequency**-exponent
    fields = np.fft.irfft2(waves, s=(_FIELD_EDGE, _FIELD_EDGE))
    fields /= fields.std((1, 2), keepdims=True)
    return np.einsum("ck,khw->hwc", _COLOURS, fields).astype(np.float32)


def _drawings(demo: Path, count: int) -> Iterator[tuple[Image.Image, str]]:
    """Yields the demo's first drawings and their captions."""
    from flava_ds.demo.dataset import unpack

    for shard in sorted(unpack(demo).glob("pairs-train/*.tar")):
        with tarfile.open(shard) as tar:
            members = {
                member.name: tar.extractfile(member).read()
                for member in tar
                if member.name.endswith((".webp", ".txt"))
            }
        for name in (name for name in members if name.endswith(".webp")):
            yield (
                Image.open(io.BytesIO(members[name])).convert("RGB"),
                members[name.replace(".webp", ".txt")].decode().strip(),
            )
            count -= 1
            if not count:
                return


def _in_shards(pictures: Iterator[tuple[bytes, str]], size: int) -> Iterator[list[tuple[bytes, str]]]:
    """Splits a stream into lists of `size`."""
    chunk = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
