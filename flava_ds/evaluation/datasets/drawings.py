"""The demo's drawings with the kind of thing that each shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.evaluation.datasets.scenes import DemoData
from flava_ds.evaluation.labelled import LabelledImages
from flava_ds.evaluation.samples import Samples, read_samples


@dataclass(frozen=True, kw_only=True)
class Drawings(DemoData):
    """Drawings of the training styles, of the same concepts in unseen styles, and of unseen concepts, each
    with its group, such as "Animals & Nature".
    """

    name: str = "drawings"
    field: str = "group"

    def read(self, folder: Path, split: str) -> LabelledImages:
        """Reads a split into memory. Classes come from all of them. Raises: DataError."""
        read: dict[str, Samples] = {
            name: read_samples(self.place(folder, name), images=name == split)
            for name in self.splits
            if self.is_here(folder, name)
        }
        classes = sorted(set().union(*(samples.column(self.field) for samples in read.values())))
        own = read[split]
        labels = np.searchsorted(classes, own.column(self.field)).astype(np.int64)
        return LabelledImages(
            self.name, own.keys, own.encoded_images.__getitem__, labels, tuple(map(str, classes))
        )
