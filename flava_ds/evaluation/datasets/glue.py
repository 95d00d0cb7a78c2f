"""GLUE's tasks as published: TSV without quoting; a quotation mark is an ordinary character."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.labelled import LabelledTexts

UNLABELLED = "a test.tsv is published without labels, so it cannot be scored here"


@dataclass(frozen=True, kw_only=True)
class Glue:
    """SPLIT.tsv with one or two texts and a label, in columns named by the first line.

    Without `has_header` (CoLA), `names` are the columns of every line.
    """

    name: str
    folder: str
    licence: str
    origin: str
    texts: tuple[str, ...]
    """Columns of the text, or of both texts."""
    label: str
    labels: tuple[str, ...] = ("0", "1")
    """Words of the label column, in the order of the classes; empty if labels are numbers."""
    class_names: tuple[str, ...] = ()
    highest: float = 0.0
    """Largest label, if labels are numbers."""
    has_header: bool = True
    names: tuple[str, ...] = ()
    """The columns, if the first line does not name them."""
    drops_short_lines: bool = False
    """Skips lines with another number of columns, as is usual for QQP, whose published file has some."""
    splits: tuple[str, ...] = ("dev", "train")
    mend: str = "download the set again"
    """What to do about a file that is not as expected."""

    @property
    def layout(self) -> str:
        """Describes the files and their columns."""
        files = ", ".join(f"{split}.tsv" for split in self.splits)
        columns = ", ".join(f"'{name}'" for name in (*self.texts, self.label))
        if not self.has_header:
            return f"{files} of {len(self.names)} columns without a line that names them ({columns} are used)"
        return f"{files}, each with a first line that names the columns {columns}"

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the files."""
        return (folder / f"{split or self.splits[0]}.tsv").is_file()

    def read(self, folder: Path, split: str) -> LabelledTexts:
        """Reads a split.

        Raises: DataError naming the file and the line with another layout.
        """
        file = folder / f"{split}.tsv"
        try:
            lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: cannot be read ({error}); expected {self.layout}; {self.origin}; "
                f"licence: {self.licence}"
            ) from error
        rows = [line.rstrip("\r").split("\t") for line in lines]
        names = rows.pop(0) if self.has_header else list(self.names)
        lacking = [name for name in (*self.texts, self.label) if name not in names]
        if lacking:
            raise DataError(
                f"{file}: its first line names {', '.join(names[:12])[:200]}, but not {', '.join(lacking)}; "
                f"{UNLABELLED if lacking == [self.label] else self.mend}"
            )
        used = [names.index(name) for name in (*self.texts, self.label)]
        kept, labels = [], []
        for number, row in enumerate(rows, start=1 + self.has_header):
            if len(row) != len(names):
                if self.drops_short_lines:
                    continue
                raise DataError(
                    f"{file}: line {number} has {len(row)} columns instead of {len(names)}, read without "
                    f"quoting; {self.mend}"
                )
            kept.append([row[place] for place in used[:-1]])
            labels.append(self._label(row[used[-1]], f"{file}: line {number}"))
        return self._labelled(kept, labels)

    def _label(self, word: str, where: str) -> float:
        """Returns the number of a class, or the label if labels are numbers. Raises: DataError."""
        if word in self.labels:
            return self.labels.index(word)
        try:
            if not self.labels and 0 <= float(word) <= self.highest:
                return float(word)
        except ValueError:
            pass
        known = ", ".join(self.labels) or f"a number from 0 to {self.highest:g}"
        raise DataError(f"{where} has the label '{word[:40]}'; known are {known}; {UNLABELLED}")

    def _labelled(self, kept: Sequence[Sequence[str]], labels: Sequence[float]) -> LabelledTexts:
        """Builds the samples from rows of texts."""
        columns = tuple(zip(*kept, strict=True)) or ((),) * len(self.texts)
        numbers = np.array(labels, dtype=np.int64 if self.labels else np.float64)
        second = columns[1] if len(self.texts) == 2 else None
        return LabelledTexts(self.name, columns[0], numbers, self.class_names or self.labels, second)
