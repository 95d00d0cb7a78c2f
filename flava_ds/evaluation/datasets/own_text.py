"""Your own labelled texts: one TSV file for each split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.labelled import LabelledTexts

TEXT, SECOND, LABEL = "text", "second", "label"


@dataclass(frozen=True)
class OwnText:
    """SPLIT.tsv with a text, or two, and the name of a class. A class means the same in every split."""

    name: str = "own_text"
    folder: str = "own_text"
    licence: str = "yours"
    origin: str = "write them with any tool; keep them out of training"
    layout: str = (
        f"train.tsv, test.tsv and, if there is one, val.tsv, each with a first line that names the columns "
        f"'{TEXT}', '{LABEL}' and, for pairs of texts, '{SECOND}', without quoting"
    )
    splits: tuple[str, ...] = ("test", "val", "train")

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        """Looks for the files."""
        return any((folder / f"{name}.tsv").is_file() for name in ([split] if split else self.splits))

    def read(self, folder: Path, split: str) -> LabelledTexts:
        """Reads a split, with the classes of all splits in alphabetical order.

        Raises: DataError naming the file, and the line with another layout.
        """
        found = [name for name in self.splits if self.is_here(folder, name)]
        columns = {name: _columns(folder / f"{name}.tsv", self.layout) for name in found}
        classes = sorted(set().union(*(labels for _, labels in columns.values())))
        paired = {name: SECOND in header for name, (header, _) in columns.items()}
        if len(set(paired.values())) > 1:
            lacking = next(name for name, has in paired.items() if not has)
            raise DataError(
                f"{folder / lacking}.tsv: has no column '{SECOND}', which another split has; give pairs of "
                "texts in every split, or in none"
            )
        texts = (TEXT, SECOND) if paired.get(split) else (TEXT,)
        published = Glue(
            name=self.name,
            folder=self.folder,
            licence=self.licence,
            origin=self.origin,
            texts=texts,
            label=LABEL,
            labels=tuple(classes),
            splits=self.splits,
            mend="mend the line",
        )
        return published.read(folder, split)


def _columns(file: Path, layout: str) -> tuple[list[str], set[str]]:
    """Returns a file's columns and the classes in it. Raises: DataError."""
    try:
        header, *lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected {layout}") from error
    names = header.rstrip("\r").split("\t")
    if LABEL not in names or TEXT not in names:
        raise DataError(f"{file}: its first line names {', '.join(names)[:200]}; expected {layout}")
    place, labels = names.index(LABEL), set()
    for number, line in enumerate(lines, start=2):
        row = line.rstrip("\r").split("\t")
        if len(row) == len(names):
            labels.add(row[place])
            if not row[place].strip():
                raise DataError(f"{file}: line {number} has no label; write one, or take the line out")
    return names, labels
