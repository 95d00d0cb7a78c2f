"""Shards made on the fly, in the layout of img2dataset."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = "a red green blue small large cat dog bird house tree over under near drawing photo of the on".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PARTS = ["un", "##believ", "##able", "play", "##ing", *".,!"]
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
    *PARTS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
]
PIECES = list(dict.fromkeys(PIECES))


def encode(pixels: np.ndarray, form: str = "webp", **options) -> bytes:
    """Encodes [H W 3] uint8."""
    stream = io.BytesIO()
    options = {"lossless": True} if form == "webp" and not options else options
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def picture(number: int, size: int = 16) -> bytes:
    """A picture that its number determines."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode(np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR)))


def caption(number: int) -> str:
    """A caption that its number determines, and that differs from those of other numbers."""
    words = np.random.default_rng(number).choice(WORDS, 6)
    return " ".join([*words, *str(number)])


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Writes members in order."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    """Reads members in order."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def pair_members(numbers, size: int = 16) -> list[tuple[str, bytes]]:
    """Members of pairs with a .txt and a .json of three captions."""
    members = []
    for number in numbers:
        record = {"captions": [f"{caption(number)} {i}" for i in range(3)], "number": number}
        members += [
            (f"{number:09d}.webp", picture(number, size)),
            (f"{number:09d}.txt", caption(number).encode()),
        ]
        members += [(f"{number:09d}.json", json.dumps(record).encode())]
    return members
