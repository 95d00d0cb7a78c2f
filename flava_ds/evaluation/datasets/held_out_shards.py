"""Shards like those for training, kept out of it, one folder per kind of step."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.families.unit.config import TASKS
from flava_ds.storage.members import IMAGE_SUFFIXES
from flava_ds.storage.sample_table import SampleTable
from flava_ds.storage.shards import expand_shards

TEXT = ("txt", "json")
"""A caption may be in either: the run's settings say where."""
FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "pair": {"image": IMAGE_SUFFIXES, "text": TEXT},
    "image": {"image": IMAGE_SUFFIXES},
    "text": {"text": TEXT},
}

FIELDS |= {task: FIELDS[content] for task, content in TASKS.items()}


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Sets of shards by kind, which the run's own loader reads; `fingerprint` hashes their keys."""

    folders: dict[str, Path]
    sizes: dict[str, int]
    """Samples of each kind."""
    fingerprint: str
    most: int | None = None
    """How many samples of a kind are taken at most."""

    def __len__(self) -> int:
        return sum(self.count(kind) for kind in self.sizes)

    def count(self, kind: str) -> int:
        """Returns how many samples of a kind are taken; 0 without that kind."""
        size = self.sizes.get(kind, 0)
        return size if self.most is None else min(size, self.most)

    def select(self, rows: np.ndarray) -> HeldOut:
        """Takes that many of each kind. Which ones, the loader's order says, and not `rows`."""
        return dataclasses.replace(self, most=len(rows))


@dataclass(frozen=True)
class HeldOutShards:
    """`pair/`, `image/` and `text/`, or folders of UniT's tasks, with shards, as far as they exist."""

    name: str = "held_out"
    folder: str = "held_out"
    licence: str = "yours"
    origin: str = "write them as you write those for training; keep them out of training"
    layout: str = (
        "pair/, image/ or text/, or a task's name, each with *.tar as for a training source of that kind"
    )
    splits: tuple[str, ...] = ("test",)

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for shards."""
        return any(any((folder / kind).glob("*.tar")) for kind in FIELDS)

    def read(self, folder: Path, split: str) -> HeldOut:
        """Lists the samples; reads none.

        Raises: DataError if a shard cannot be read.
        """
        folders = {kind: folder / kind for kind in FIELDS if any((folder / kind).glob("*.tar"))}
        tables = {
            kind: SampleTable(
                expand_shards(str(own)), FIELDS[kind], {name: f"no {name}" for name in FIELDS[kind]}
            )
            for kind, own in folders.items()
        }
        told = ",".join(f"{kind} {table.fingerprint}" for kind, table in tables.items())
        sizes = {kind: len(table) for kind, table in tables.items()}
        return HeldOut(folders, sizes, hashlib.sha256(told.encode()).hexdigest()[:16])
