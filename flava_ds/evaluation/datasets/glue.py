"""GLUE's single-sentence tasks as published: TSV without quoting, one header line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flava_ds.errors import DataError
from flava_ds.evaluation.labelled import LabelledTexts


@dataclass(frozen=True)
class GlueSentences:
    """SPLIT.tsv with a sentence and a class, in columns named in the header."""

    name: str
    folder: str
    licence: str
    origin: str
    sentence: str
    label: str
    class_names: tuple[str, ...]
    """In the order of the labels 0, 1, ..."""
    splits: tuple[str, ...] = ("dev", "train")

    @property
    def layout(self) -> str:
        """Describes the two files and their columns."""
        return (
            f"train.tsv and dev.tsv whose first line names the columns '{self.sentence}' and '{self.label}'"
        )

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the files."""
        return (folder / f"{split or self.splits[0]}.tsv").is_file()

    def read(self, folder: Path, split: str) -> LabelledTexts:
        """Reads a split.

        Raises: DataError naming the file and the line with another layout. test.tsv has no labels and is not
        a split.
        """
        file = folder / f"{split}.tsv"
        try:
            header, *lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({error}); {self.origin}") from error
        columns = header.rstrip("\r").split("\t")
        if self.sentence not in columns or self.label not in columns:
            raise DataError(
                f"{file}: its first line names {', '.join(columns[:5])}; expected {self.sentence} and "
                f"{self.label}"
            )
        at_sentence, at_label = columns.index(self.sentence), columns.index(self.label)
        texts, labels = [], []
        for number, line in enumerate(lines, start=2):
            fields = line.rstrip("\r").split("\t")
            known = (
                len(fields) == len(columns)
                and fields[at_label].isdigit()
                and int(fields[at_label]) < len(self.class_names)
            )
            if not known:
                raise DataError(
                    f"{file}: line {number} has {len(fields)} columns, or no label of 0 to "
                    f"{len(self.class_names) - 1}; expected {len(columns)} columns without quoting; download "
                    "the set again"
                )
            texts.append(fields[at_sentence])
            labels.append(int(fields[at_label]))
        return LabelledTexts(self.name, tuple(texts), np.array(labels, dtype=np.int64), self.class_names)
