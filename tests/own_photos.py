"""A stranger's data: photograph-like JPEGs of uneven sizes with captions and labels, in shards as img2dataset
writes them, some of the samples bad.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCENES = {
    "beach": ((230, 210, 150), (80, 160, 230)),
    "forest": ((30, 80, 30), (120, 170, 110)),
    "desert": ((200, 120, 50), (250, 200, 120)),
}
"""Class -> colours of the ground and the sky."""
WORDS = "quiet beautiful old wide small empty crowded sunny grey far".split()
BAD = {3: "truncated", 8: "no caption", 13: "not utf-8", 18: "tiny"}
"""Which samples of a shard are bad, and how."""


def photo(draws: np.random.Generator, scene: str, size: tuple[int, int] | None = None) -> bytes:
    """A grainy picture of a ground and a sky with some stones, as JPEG."""
    width, height = size or tuple(int(edge) for edge in draws.integers(120, 320, 2))
    ground, sky = (np.array(colour, float) for colour in SCENES[scene])
    down = np.linspace(0, 1, height)[:, None, None]
    pixels = sky * (1 - down) + ground * down + draws.normal(0, 20, (height, width, 3))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, edge = (int(draws.integers(0, most)) for most in (width, height, max(2, height // 4)))
        pen.ellipse([x, y, x + edge, y + edge // 2], fill=tuple(int(v) for v in draws.integers(0, 255, 3)))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=int(draws.integers(60, 95)))
    return stream.getvalue()


def sample(draws: np.random.Generator, scene: str, bad: str = "") -> dict[str, bytes]:
    """The members of a sample by suffix, as img2dataset writes them."""
    words = " ".join(draws.choice(WORDS, int(draws.integers(0, 9))))
    caption = f"a photo of the {scene} {words}".strip()
    members = {
        "jpg": photo(draws, scene, (3, 2) if bad == "tiny" else None),
        "txt": b"caf\xe9" if bad == "not utf-8" else caption.encode(),
        "json": json.dumps({"caption": caption, "label": scene, "status": "success"}).encode(),
    }
    if bad == "truncated":
        members["jpg"] = members["jpg"][: len(members["jpg"]) // 3]
    if bad == "no caption":
        del members["txt"]
    return members


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Writes key -> suffix -> bytes as a shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def write_photos(path: Path, count: int, *, seed: int = 0, bad: bool = False) -> Path:
    """Writes a shard of pictures with captions and labels, classes in turn; with `bad`, BAD's among them."""
    draws, names = np.random.default_rng(seed), list(SCENES)
    found = {
        f"{path.stem}{number:04d}": sample(draws, names[number % 3], BAD.get(number, "") if bad else "")
        for number in range(count)
    }
    return write_tar(path, found)


def write_texts(path: Path, lengths: Sequence[int]) -> Path:
    """Writes a shard of texts of so many words."""
    draws = np.random.default_rng(len(lengths))
    words = [*WORDS, *SCENES]
    return write_tar(
        path,
        {
            f"{number:06d}": {"txt": " ".join(draws.choice(words, length)).encode()}
            for number, length in enumerate(lengths)
        },
    )
