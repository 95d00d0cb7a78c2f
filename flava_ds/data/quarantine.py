"""Unusable samples that a run met, one line each, and the skip list that spares the next run from trying
them.

A rank appends to a file of its own, RUN/quarantine/rank_00000.jsonl, as JSON lines: source, shard, key,
offset, reason, detail, epoch, step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flava_ds.errors import DataError

log = logging.getLogger(__name__)

MOST_LINES = 100_000
"""Lines of one rank's file; what comes after is counted in the metrics alone."""
FOLDER = "quarantine"


def quarantine_file(run: Path, rank: int) -> Path:
    """Returns the file of a rank."""
    return run / FOLDER / f"rank_{rank:05d}.jsonl"


class Quarantine:
    """Appends every unusable sample once, also over restarts; a run without any writes no file."""

    def __init__(self, path: Path, most_lines: int = MOST_LINES) -> None:
        """Raises: DataError when what is there cannot be read."""
        self.path, self.most_lines = path, most_lines
        self._known = {_identity(entry) for entry in _lines(path)} if path.is_file() else set()

    def add(self, step: int, entries: Sequence[dict[str, Any]]) -> None:
        """Writes the entries that are new, as first met at optimizer step `step`. Raises: DataError when the
        file cannot be written.
        """
        new = {_identity(entry): entry for entry in reversed(entries) if _identity(entry) not in self._known}
        room = self.most_lines - len(self._known)
        if not new or room <= 0:
            return
        kept = list(new.items())[:room]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(entry | {"step": step}) + "\n" for _, entry in kept)
        except OSError as error:
            raise DataError(f"quarantine list '{self.path}' cannot be written: {error.strerror}") from error
        self._known.update(identity for identity, _ in kept)
        if len(self._known) >= self.most_lines:
            log.warning(
                "quarantine list '%s' has its %d lines; unusable samples are only counted from now on",
                self.path,
                self.most_lines,
            )


def read_quarantine(run: Path) -> list[dict[str, Any]]:
    """Returns what all ranks of a run have listed, each sample once. Raises: DataError when there is no list,
    or a line is none of ours.
    """
    files = sorted((run / FOLDER).glob("rank_*.jsonl"))
    if not files:
        raise DataError(
            f"'{run / FOLDER}' holds no list: the run met no unusable sample, or '{run}' is not a run"
        )
    return list({_identity(entry): entry for file in files for entry in _lines(file)}.values())


def skip_list_lines(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Writes entries in the form of a skip list: 'sample SHARD KEY', both percent-encoded, with the reason as
    a comment.
    """
    return [
        f"sample {encoded(entry['shard'])} {encoded(entry['key'])}  # {entry['reason']}" for entry in entries
    ]


def encoded(text: str) -> str:
    """Percent-encodes what a skip list's words cannot hold."""
    return quote(text, safe="/._-+=,@:~")


def _identity(entry: dict[str, Any]) -> tuple[str, str, str]:
    """Returns what tells a sample from others."""
    return entry["source"], entry["shard"], entry["key"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a file; half a line at its end, which a killed run leaves, is passed over."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            _identity(entry)
        except (ValueError, KeyError, TypeError) as error:
            if number == text.count("\n") + 1:
                return
            raise DataError(
                f"quarantine list '{path}', line {number}: '{line[:80]}' is none of its lines"
            ) from error
        yield entry
