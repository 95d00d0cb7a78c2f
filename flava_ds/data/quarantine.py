"""The quarantine list of unusable samples that a run met. It converts into a skip list for the next run.

Each rank appends to its own file, RUN/quarantine/rank_00000.jsonl, as JSON lines: source, shard, key, offset,
reason, detail, epoch, step. A stream lists a damaged shard with an empty key.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flava_ds.data.skip_list import shard_place
from flava_ds.errors import DataError

log = logging.getLogger(__name__)

MOST_LINES = 100_000
"""Maximum lines per rank; further samples are only counted in the metrics."""
FOLDER = "quarantine"


def quarantine_file(run: Path, rank: int) -> Path:
    """Returns the path of a rank's file."""
    return run / FOLDER / f"rank_{rank:05d}.jsonl"


class Quarantine:
    """Appends every unusable sample once, even over restarts; writes no file if there are none."""

    def __init__(self, path: Path, most_lines: int = MOST_LINES) -> None:
        """Raises: DataError when the existing file cannot be read."""
        self.path, self.most_lines = path, most_lines
        self._known = {_identity(entry) for entry in _lines(path)} if path.is_file() else set()
        self._half_line = path.is_file() and not path.read_bytes().endswith(b"\n")

    def add(self, step: int, entries: Sequence[dict[str, Any]]) -> None:
        """Writes the new entries, with `step` as the optimizer step that met them.

        Raises: DataError when the file cannot be written.
        """
        listed = [entry | {"shard": shard_place(entry["shard"]), "step": step} for entry in entries]
        new = {_identity(entry): entry for entry in reversed(listed) if _identity(entry) not in self._known}
        room = self.most_lines - len(self._known)
        if not new or room <= 0:
            return
        kept = list(new.items())[:room]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._half_line:
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
                self._half_line = False
            with self.path.open("a", encoding="utf-8") as stream:
                for _, entry in kept:
                    stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise DataError(f"quarantine list '{self.path}' cannot be written: {error.strerror}") from error
        self._known.update(identity for identity, _ in kept)
        if len(self._known) >= self.most_lines:
            log.warning(
                "quarantine list '%s' is full with %d lines; further unusable samples are only counted",
                self.path,
                self.most_lines,
            )


def read_quarantine(run: Path) -> list[dict[str, Any]]:
    """Returns the samples that all ranks of a run have listed, each once.

    Raises: DataError when there is no list, or a line is malformed.
    """
    files = sorted((run / FOLDER).glob("rank_*.jsonl"))
    if not files:
        raise DataError(
            f"'{run / FOLDER}' holds no list: the run met no unusable sample, or '{run}' is not a run"
        )
    return list({_identity(entry): entry for file in files for entry in _lines(file)}.values())


def skip_list_lines(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Formats entries for a skip list: 'sample SHARD KEY', percent-encoded, with the reason as a comment.

    Leaves out entries without a key, which are damaged shards that a stream met.
    """
    return [
        f"sample {encoded(entry['shard'])} {encoded(entry['key'])}  # {entry['reason']}"
        for entry in entries
        if entry["key"]
    ]


def encoded(text: str) -> str:
    """Percent-encodes characters that a word of a skip list cannot contain."""
    return quote(text, safe="/._-+=,@:~")


def _identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    """Returns the key that identifies a listed sample, whose shard was resolved when it was added."""
    return entry["source"], entry["shard"], entry["key"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a file; ignores an incomplete last line, which a killed run leaves behind."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            if not all(isinstance(part, str) for part in _identity(entry)):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            if number == text.count("\n") + 1:
                return
            raise DataError(
                f"quarantine list '{path}', line {number}: '{line[:80]}' is malformed; delete the line"
            ) from error
        yield entry
