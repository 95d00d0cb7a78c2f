"""Data sets in miniature, in their published layouts, of plain red, green and blue pictures; and a model that
knows these colours."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.demo.shards import write_shards
from flava_ds.evaluation.frozen_model import Described, FrozenModel

COLORS = ("blue", "green", "red")
CHANNEL = {"blue": 2, "green": 1, "red": 0}
SIZE = 16


def pixels_of(color: str, number: int, edge: int = 20) -> np.ndarray:
    """A picture in one colour whose brightness follows its number: [edge edge+4 3] uint8."""
    picture = np.full((edge, edge + 4, 3), 10, dtype=np.uint8)
    picture[..., CHANNEL[color]] = 120 + 5 * number
    return picture


def png(color: str, number: int) -> bytes:
    """The same as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels_of(color, number)).save(stream, "PNG")
    return stream.getvalue()


def write_image_folder(root: Path, counts: Mapping[str, int]) -> Path:
    """Writes split -> pictures of each colour; every split has other ones."""
    number = 0
    for split, count in counts.items():
        for color in COLORS:
            folder = root / split / color
            folder.mkdir(parents=True)
            for place in range(count):
                (folder / f"{place}.png").write_bytes(png(color, number % 20))
                number += 1
    return root


def write_cifar10(root: Path, *, per_file: int = 6, python2: bool = True) -> Path:
    """Writes CIFAR-10's files with three classes, as they are published or as today's Python pickles the
    same."""
    dump = python2_pickle if python2 else pickle.dumps
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file in ("test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        labels = [number % 3 for number in range(per_file)]
        rows = [
            pixels_of(COLORS[label], n)[:, :1].repeat(32, 1)[:1].repeat(32, 0)
            for n, label in enumerate(labels)
        ]
        data = np.stack([row.transpose(2, 0, 1).reshape(-1) for row in rows])
        (folder / file).write_bytes(dump({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(dump({"label_names": list(COLORS)}))
    return folder


def python2_pickle(value: object) -> bytes:
    """Writes a dict of arrays, numbers and words with the opcodes of Python 2 and NumPy 1, protocol 2, as
    CIFAR-10's authors did."""
    return b"\x80\x02" + _python2_opcodes(value) + b"."


def _python2_opcodes(value: object) -> bytes:
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(raw)) + raw
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, dict):
        entries = b"".join(_python2_opcodes(key) + _python2_opcodes(entry) for key, entry in value.items())
        return b"}(" + entries + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2_opcodes, value)) + b"e"
    assert value.dtype == np.uint8
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2_opcodes(0) + b"\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1" + _python2_opcodes(0) + _python2_opcodes(1) + b"tR"
    dtype += (
        b"(" + _python2_opcodes(3) + b"U\x01|NNN" + _python2_opcodes(-1) * 2 + _python2_opcodes(0) + b"tb"
    )
    shape = b"(" + b"".join(map(_python2_opcodes, value.shape)) + b"t"
    return (
        made
        + b"("
        + _python2_opcodes(1)
        + shape
        + dtype
        + b"\x89"
        + _python2_opcodes(value.tobytes())
        + b"tb"
    )


def write_karpathy(
    root: Path, json_name: str, image_folder: str, count: int = 6, filepath: str | None = None
) -> Path:
    """Writes Karpathy's JSON with `count` test images of the colours in turn, five captions each (the first
    has six), and one training image."""
    images = []
    (root / image_folder).mkdir(parents=True)
    for number in range(count + 1):
        color = COLORS[number % 3]
        name = f"{number:04d}.png"
        (root / image_folder / name).write_bytes(png(color, number))
        sentences = [{"raw": f"  {color} number {place} "} for place in range(6 if number == 0 else 5)]
        entry = {"filename": name, "split": "test" if number < count else "train", "sentences": sentences}
        images.append(entry | ({"filepath": filepath} if filepath else {}))
    (root / json_name).write_text(json.dumps({"images": images, "dataset": "colors"}))
    return root


def write_own(root: Path, counts: Mapping[str, int], label: str = "label") -> Path:
    """Writes shards: split -> samples of each colour."""
    number = 0
    for split, count in counts.items():
        samples = []
        for color in COLORS:
            for _ in range(count):
                record = json.dumps({label: color}).encode()
                samples.append(
                    {
                        "key": f"{number:05d}",
                        "png": png(color, number % 20),
                        "txt": f"a {color} thing".encode(),
                        "json": record,
                    }
                )
                number += 1
        write_shards(root / split, samples, 4)
    return root


def write_sst2(root: Path, counts: Mapping[str, int]) -> Path:
    """Writes SST-2's TSV: positive sentences are red, negative ones blue; quotation marks are plain
    characters."""
    folder = root / "SST-2"
    folder.mkdir(parents=True)
    for split, count in counts.items():
        rows = [f'a "{"red" if number % 2 else "blue"} one\t{number % 2}' for number in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


class KnowsColors:
    """Offers image and text features of five numbers: the brightest channel and the colour's word, with a
    little noise; it confuses what `confuses` maps to something else."""

    def __init__(self, confuses: Mapping[str, str] = {}):  # noqa: B006
        self.tokenizer = WordPieceTokenizer("bert_base_uncased")
        self.confuses = confuses
        self.calls: list[int] = []

    def image_features(self, pixels):
        self.calls.append(len(pixels))
        brightest = pixels.float().mean(dim=(2, 3)).argmax(1)
        color_of = {channel: color for color, channel in CHANNEL.items()}
        return self._vectors(
            [color_of[int(channel)] for channel in brightest], pixels.float().mean(dim=(1, 2, 3))
        )

    def text_features(self, texts):
        said = [self.tokenizer.decode(ids) for ids in texts]
        colors = [next((color for color in COLORS if color in words), "green") for words in said]
        return self._vectors(colors, torch.zeros(len(texts)), confuse=False)

    def project_images(self, features):
        return F.normalize(features[:, :3], dim=1)

    project_texts = project_images

    def _vectors(self, colors, more, confuse=True):
        rows = [COLORS.index(self.confuses.get(color, color) if confuse else color) for color in colors]
        return torch.cat([torch.eye(3)[rows], more[:, None] / 1000, torch.ones(len(rows), 1)], dim=1)


def color_model(*parts, reasons=None, share=None, cache=None) -> FrozenModel:
    """Returns a model that offers these parts, by default all that KnowsColors does."""
    parts = parts or (KnowsColors(),)
    tokenizer = WordPieceTokenizer("bert_base_uncased")
    sizes = {"image_size": SIZE, "most_tokens": {"pair": 16, "text": 16}, "device": torch.device("cpu")}
    return FrozenModel(
        Described("colors", "color"), (parts, reasons or {}), tokenizer, **sizes, share=share, cache=cache
    )


class Matches:
    """Log odds are 1 where the caption names the picture's colour."""

    def __init__(self):
        self.knows, self.asked = KnowsColors(), 0

    def log_odds(self, pixels, pairings):
        self.asked += len(pixels)
        seen = self.knows.image_features(pixels)[:, :3]
        return [(seen * self.knows.text_features(texts)[:, :3]).sum(1) for texts in pairings]
