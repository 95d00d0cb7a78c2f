"""Writes shards in img2dataset's layout: KEY.jpg, KEY.txt and KEY.json in NNNNN.tar, plus NNNNN_stats.json.

A shard is written under a temporary name and renamed. Its record, written afterwards, has the number of
entries that went into it, so a resumed conversion skips that many. Shards end at a number of samples or of
bytes, so their sizes vary.

Written by hand, since webdataset's TarWriter ignores the tar format that it is given and stamps every member
with an owner: long names would become pax headers, and equal inputs would not give equal files.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from flava_ds.errors import DataError
from flava_ds.storage.atomic import PARTIAL, hold, write_whole
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.unfinished import ORIGIN, SUMMARY, record_of

SUCCESS = "success"
DUPLICATE_KEY = "duplicate key"
_LOCK = ".lock"


@dataclass
class Counts:
    """Counts of a conversion: entries read; samples, captions, words written; entries dropped by reason."""

    entries: int = 0
    samples: int = 0
    captions: int = 0
    words: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Adds other counts to these."""
        self.entries, self.samples = self.entries + other.entries, self.samples + other.samples
        self.captions, self.words = self.captions + other.captions, self.words + other.words
        self.dropped.update(other.dropped)

    def add_sample(self, captions: Sequence[str]) -> None:
        """Counts an entry that became a sample."""
        self.entries, self.samples = self.entries + 1, self.samples + 1
        self.captions += len(captions)
        self.words += sum(len(caption.split()) for caption in captions)

    def leave_out(self, reason: str) -> None:
        """Counts an entry that yields no sample."""
        self.entries += 1
        self.dropped[reason] += 1

    def as_stats(self) -> dict[str, Any]:
        """Returns the counts under img2dataset's names: count, successes and status_dict."""
        status = {SUCCESS: self.samples, **self.dropped}
        return {
            "count": self.entries,
            "successes": self.samples,
            "captions": self.captions,
            "words": self.words,
            "status_dict": status,
        }

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any]) -> Counts:
        """Parses the result of `as_stats`."""
        status = stats["status_dict"].items()
        dropped = Counter({reason: number for reason, number in status if reason != SUCCESS})
        return cls(stats["count"], stats["successes"], stats["captions"], stats["words"], dropped)


class ShardWriter:
    """Writes samples to one shard after another."""

    complete: bool
    """Whether everything is written, by this run or an earlier one."""

    def __init__(
        self, out: Path, fingerprint: str, *, samples_per_shard: int = 10_000, bytes_per_shard: int = 2**30
    ) -> None:
        """Opens folder `out`, and finds what an earlier run has finished there.

        Holds the folder until `close`, `abandon` or the end of a `with` block.

        Raises: DataError when another process writes to `out`, or when it contains shards of another
        conversion, shards without records, or not all that a finished conversion wrote.
        """
        self.out, self.fingerprint = out, fingerprint
        self.samples_per_shard, self.bytes_per_shard = samples_per_shard, bytes_per_shard
        self._lock: IO[bytes] | None = None
        with self._writing():
            out.mkdir(parents=True, exist_ok=True)
            self._resume()
            if not self.complete:
                self._lock = hold(out / _LOCK)
                self._resume()  # another process may have gone on in between
        self._shard, self._bytes = Counts(), 0
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()

    @property
    def total(self) -> Counts:
        """The counts of the finished shards and of the one in progress."""
        total = Counts()
        total.add(self.counts)
        total.add(self._shard)
        return total

    def leave_out(self, reason: str) -> None:
        """Counts an entry that yields no sample."""
        self._shard.leave_out(reason)

    def write(self, key: str, members: Mapping[str, bytes], captions: tuple[str, ...]) -> None:
        """Writes one sample: suffix -> bytes.

        Raises: SampleFault for a second sample with the same key in a shard, to be left out.
        """
        if key in self._keys:
            raise SampleFault(DUPLICATE_KEY)
        size = sum(1024 + len(data) for data in members.values())
        full = self._shard.samples >= self.samples_per_shard or self._bytes + size > self.bytes_per_shard
        if self._shard.samples and full:
            self._finish()
        with self._writing():
            if self._tar is None:
                self._tar = tarfile.open(self._temporary, "w", format=tarfile.USTAR_FORMAT)
            for suffix, data in members.items():
                add_member(self._tar, f"{key}.{suffix}", data)
        self._keys.add(key)
        self._bytes += size
        self._shard.add_sample(captions)

    def close(self) -> Counts:
        """Finishes the last shard; returns the counts of this run and the earlier ones that it continues."""
        self._finish()
        self.counts.add(self._shard)
        self._shard, self.complete = Counts(), True
        with self._writing():
            self._record(self.out / SUMMARY, self.counts)
        self._release()
        return self.counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Deletes the unfinished shard, and the folder if it is empty.

        Raises: KeyboardInterrupt in place of another one, with words on what is left and how to go on.
        """
        self.abandon()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            left = "before the first shard was finished; the same command begins anew"
            if self.shards:
                left = (
                    f"with {self.counts.samples:,} samples in the finished shards of '{self.out}', which is "
                    "incomplete; the same command goes on after them"
                )
            raise KeyboardInterrupt(f"interrupted {left}") from None

    def abandon(self) -> None:
        if self._tar is not None:
            with contextlib.suppress(OSError):  # the disk is full, as the error before this one said
                self._tar.close()
            self._tar = None
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            self._release()
        with contextlib.suppress(OSError):  # it holds finished shards
            self.out.rmdir()

    def _release(self) -> None:
        """Lets other processes write to the folder."""
        if self._lock is not None:
            with self._lock, contextlib.suppress(OSError):
                (self.out / _LOCK).unlink()
            self._lock = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises: DataError that names the folder where something in it cannot be written."""
        try:
            yield
        except OSError as error:
            raise DataError(f"folder '{self.out}': {error.strerror or error}") from error

    @property
    def _next(self) -> Path:
        """The shard that is written next."""
        return self.out / f"{self.shards:05d}.tar"

    @property
    def _temporary(self) -> Path:
        """The shard in progress. Without storage/atomic.py, as it stays open between calls of `write`."""
        return self._next.with_name(self._next.name + PARTIAL)

    def _finish(self) -> None:
        """Renames the shard in progress, if there is one, then writes its record."""
        if self._tar is None:
            return
        with self._writing():
            self._tar.close()
            self._temporary.replace(shard := self._next)
            self._record(shard.with_name(record_of(shard)), self._shard)
        self.counts.add(self._shard)
        self.shards += 1
        self._shard, self._tar, self._bytes, self._keys = Counts(), None, 0, set()

    def _record(self, path: Path, counts: Counts) -> None:
        """Writes the counts and the fingerprint of their origin."""
        text = json.dumps({**counts.as_stats(), ORIGIN: self.fingerprint}, indent=2)
        write_whole(path, text + "\n")

    def _resume(self) -> None:
        """Adds up the records of finished shards; a shard without a record is written again.

        Raises: DataError for shards of another conversion, or a finished one that lacks shards.
        """
        self.counts, self.shards, self.complete = Counts(), 0, False
        while (record := self.out / record_of(self._next)).is_file() and self._next.is_file():
            self.counts.add(self._read(record))
            self.shards += 1
        if (summary := self.out / SUMMARY).is_file():
            total = self._read(summary)
            if total.samples != self.counts.samples:
                raise DataError(
                    f"folder '{self.out}': {SUMMARY} counts {total.samples} samples, but the shards from "
                    f"00000.tar on hold {self.counts.samples}; delete the folder to prepare it again"
                )
            self.counts, self.complete = total, True
        names = [path.name for path in sorted(self.out.glob("*.tar")) if not self._own(path)]
        strange = [name for name in names if name != self._next.name]
        if strange:
            raise DataError(
                f"folder '{self.out}' contains {strange[0]}, which this conversion did not write; choose "
                "an empty folder"
            )

    def _own(self, shard: Path) -> bool:
        return shard.stem.isdigit() and int(shard.stem) < self.shards

    def _read(self, path: Path) -> Counts:
        """Reads a record. Raises: DataError if it belongs to other annotations or options."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            counts, made_from = Counts.from_stats(saved), saved[ORIGIN]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"'{path}' is not a record of a conversion ({error!r}); choose an empty folder"
            ) from error
        if made_from != self.fingerprint:
            raise DataError(
                f"folder '{self.out}' was prepared from other annotations or with other options; choose "
                "an empty folder"
            )
        return counts


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file without time, owner or any other trace of this machine."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    # only the GNU format has long names
    short = len(name.encode("utf-8", "surrogateescape")) <= tarfile.LENGTH_NAME
    tar.format = tarfile.USTAR_FORMAT if short else tarfile.GNU_FORMAT
    tar.addfile(info, io.BytesIO(data))
