"""Data of others: shards, the files beside them, pictures, names of shards, lists of samples."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from data.shard_files import encode
from data.shard_mutations import END, RANDOM, members
from data.whole_sources import OF_A_SAMPLE
from fuzz.mutations import NASTY_TEXTS, as_json, change_bytes, change_json
from fuzz.oracles import Finding, complaint
from fuzz.surface import Surface, small_run

from flava_ds.config import SourceConfig
from flava_ds.data.decode import decode_image, read_header
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.skip_list import load_skip_list
from flava_ds.storage import faults
from flava_ds.storage.index import load_index
from flava_ds.storage.index_files import index_files
from flava_ds.storage.shards import list_shards


class Shards(Surface):
    """The bytes of a tar: every sample is delivered or counted under its reason."""

    name = "shard"

    def seeds(self) -> Sequence[bytes]:
        return [b"".join([*members(), END])]

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        if draw.random() < 0.3 or len(data) < 4096:
            return change_bytes(draw, data)
        shard = bytearray(data)
        try:
            RANDOM[draw.randrange(len(RANDOM))](np.random.default_rng(draw.getrandbits(32)), shard)
        except (IndexError, ValueError):  # a shard that was changed before is too short for some
            return change_bytes(draw, data)
        return bytes(shard)

    def check(self, folder: Path, data: bytes) -> None:
        path = folder / "0.tar"
        path.write_bytes(data)
        config = small_run().with_sources(
            {"fuzz": SourceConfig(kind="pair", shards=str(path), max_skipped_share=1.0, max_tokens=24)}
        )
        source, said = complaint(lambda: IndexedShards(config, "fuzz"))
        if source is None:
            if "0 usable samples" not in said:
                raise Finding(f"a shard is refused: {said}")
            return
        table = source.table
        left_out = sum(table.faults[reason] for reason in (faults.NO_IMAGE, faults.MISSING_CAPTION))
        if len(source) + left_out != len(load_index(path)):
            raise Finding("a sample is neither usable nor counted")
        complaint(source.state)
        for index in range(len(source)):
            _, said = complaint(lambda index=index: source.decode(source.read(index), index, 0))
            if said is not None and said.split(" (")[0] not in OF_A_SAMPLE:
                raise Finding(f"no documented reason: {said}")


class Indexes(Surface):
    """The file beside a shard: what is read through it is what is read without it."""

    name = "index"

    def seeds(self) -> Sequence[bytes]:
        return [b""]

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        """Draws a seed of the case, which changes its own index: that holds the time of the shard's last
        change.
        """
        return draw.randbytes(8)

    def check(self, folder: Path, data: bytes) -> None:
        path = folder / "0.tar"
        path.write_bytes(b"".join([*members(), END]))
        clean, (beside, _) = load_index(path), index_files(path)
        draw = random.Random(data)
        written = beside.read_bytes()
        changed = self._other_header(draw, written) if draw.random() < 0.4 else change_bytes(draw, written)
        beside.write_bytes(changed if data else written)
        index, _ = complaint(lambda: load_index(path))
        if index is None or len(index) != len(clean):
            raise Finding("an index changes the samples")
        arrays = ("keys", "key_ends", "member_sample", "member_suffix", "member_offset", "member_size")
        equal = all(np.array_equal(getattr(index, name), getattr(clean, name)) for name in arrays)
        # one that agrees with itself and with the shard's size and time is believed (docs/security.md)
        if not equal and not (index.member_offset + index.member_size <= path.stat().st_size).all():
            raise Finding("an index points outside of its shard")
        if any(count < 0 or reason not in faults.OF_A_SHARD for reason, count in index.faults.items()):
            raise Finding(f"an index counts {index.faults}")

    @staticmethod
    def _other_header(draw: random.Random, data: bytes) -> bytes:
        """Changes the JSON inside, and writes the arrays again as they were."""
        with np.load(io.BytesIO(data)) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        header = change_json(draw, json.loads(kept["header"].tobytes()))
        kept["header"] = np.frombuffer(as_json(header), dtype=np.uint8)
        stream = io.BytesIO()
        np.savez(stream, **kept)
        return stream.getvalue()


class Pictures(Surface):
    """An encoded picture: pixels of the size in its header, or one reason."""

    name = "picture"

    def seeds(self) -> Sequence[bytes]:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
        forms = [(form, channels) for form in ("JPEG", "PNG", "WEBP") for channels in (3, 4)]
        return [
            encode(pixels[..., :channels], form)
            for form, channels in forms
            if (form, channels) != ("JPEG", 4)
        ]

    def check(self, folder: Path, data: bytes) -> None:
        image, _ = complaint(lambda: decode_image(data, 2**20))
        if image is not None:
            header = read_header(data)
            sides = {header.width, header.height}
            if image.dtype != torch.uint8 or len(image) != 3 or set(image.shape[1:]) != sides:
                raise Finding(f"{image.dtype} {tuple(image.shape)} of {header}")


class Patterns(Surface):
    """What `shards` says: names, patterns, URLs and lists."""

    name = "pattern"

    def seeds(self) -> Sequence[bytes]:
        return [
            text.encode("utf-8", "surrogatepass")
            for text in (
                "x/{0..3}.tar",
                "{a,b}{1..2}",
                "memory://f/{0..2}.tar",
                "list.txt",
                "file://x",
                *NASTY_TEXTS,
            )
        ]

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        parts = [
            b"{0..9}",
            b"{a,b}",
            b"{",
            b"}",
            b"..",
            b",",
            b"://",
            b"?",
            b".tar",
            b"/",
            b"9" * 30,
            b"::",
            b"pipe:",
        ]
        at = draw.randrange(len(data) + 1)
        return data[:at] + draw.choice(parts) + data[at:] if draw.random() < 0.7 else change_bytes(draw, data)

    def check(self, folder: Path, data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        if (
            text.lstrip()
            .lower()
            .startswith(("http", "s3", "gs", "gcs", "hf", "ftp", "sftp", "ssh", "github", "git"))
        ):
            text = text.lstrip() + ".tar"  # what is asked of a server is for tests/storage
        with contextlib.chdir(folder):
            Path("list.txt").write_bytes(data.replace(b"list.txt", b""))
            found, _ = complaint(lambda: list_shards(text, "fuzz"))
        if found is not None and (found != sorted(set(found)) or not found):
            raise Finding("shards are not sorted, or there are none")


class SkipLists(Surface):
    """A list of samples to leave out."""

    name = "skip_list"

    def seeds(self) -> Sequence[bytes]:
        return [b"key a\nsha256 " + b"0" * 64 + b"\nphash 8f373714acfcf4d0 10\nsample 0.tar a  # why\n"]

    def check(self, folder: Path, data: bytes) -> None:
        (folder / "list.txt").write_bytes(data)
        complaint(lambda: load_skip_list(str(folder / "list.txt")))
