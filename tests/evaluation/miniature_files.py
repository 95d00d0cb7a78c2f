"""Writes small files of every format that a published data set comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from evaluation.color_world import pixels_of
from PIL import Image


def save(file: Path, color: str, number: int, edge: int = 20) -> str:
    """Writes a picture in the format of its name; returns the name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels_of(color, number, edge))
    kind = {".jpg": "JPEG", ".JPEG": "JPEG", ".ppm": "PPM", ".png": "PNG"}[file.suffix]
    picture.save(file, kind)
    return file.name


def square(color: str, number: int, edge: int) -> np.ndarray:
    """[3 edge edge] uint8."""
    return pixels_of(color, number, edge)[:, :edge].transpose(2, 0, 1)


def text(file: Path, *lines: str) -> None:
    """Writes lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def mat(file: Path, **fields: object) -> None:
    """Writes a MATLAB file."""
    from scipy.io import savemat

    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, fields)
