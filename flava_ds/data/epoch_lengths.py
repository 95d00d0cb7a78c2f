"""How many samples an epoch of a stream has: kept in the run's folder, so that a resume need not read one to
learn it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from flava_ds.config.plain_files import loads, read_small
from flava_ds.data.sources import Lane
from flava_ds.storage.atomic import write_json

FOLDER = "streams"
"""In a run's folder: a file for each source and lane."""


class EpochLength:
    """The length of one lane's epochs, once it is known. `shards` identifies what the lane reads."""

    def __init__(self, run: Path, source: str, lane: Lane, shards: str) -> None:
        self._run, self._shards = run, shards
        self._file = run / FOLDER / f"{quote(source, safe='')}.{lane.index}_of_{lane.total}.json"

    def read(self) -> int | None:
        """Returns the length that the run has found for these shards; None if it has found none."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            found = loads(read_small(self._file))
            if found["shards"] == self._shards and type(found["samples"]) is int and found["samples"] > 0:
                return found["samples"]
        return None

    def write(self, samples: int) -> None:
        """Keeps a length if there is a run's folder that may be written."""
        with suppress(OSError):
            if self._run.is_dir():
                self._file.parent.mkdir(exist_ok=True)
                write_json(self._file, {"shards": self._shards, "samples": samples})
