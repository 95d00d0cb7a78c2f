"""Converts a corpus to shards: from annotations and images, from downloaded shards, or via a list of URLs."""

from __future__ import annotations

import csv
import dataclasses
import errno
import hashlib
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.data.decode import read_whole
from flava_ds.data.samples import printable
from flava_ds.errors import DataError
from flava_ds.prepare.annotations import Annotated, Dropped, clean
from flava_ds.prepare.corpora import Corpus
from flava_ds.prepare.own_table import TEXTS
from flava_ds.prepare.shard_writer import Counts, ShardWriter
from flava_ds.storage import faults
from flava_ds.storage.atomic import replacing
from flava_ds.storage.faults import SampleFault, counted
from flava_ds.storage.files import sha256_of
from flava_ds.storage.index import load_indexes
from flava_ds.storage.members import IMAGE_SUFFIXES
from flava_ds.storage.shards import expand_shards

log = logging.getLogger(__name__)

NO_FILE, OTHER_URL = "no image file", "image file of another URL"
_SUFFIX_OF = {"JPEG": "jpg", "PNG": "png", "WebP": "webp"}
_THREADS, _AHEAD = 16, 64
_EVERY_S = 10.0
_NAMED = 5
"""Entries left out that are named, for each reason."""


def write_shards(
    corpus: Corpus, annotations: Sequence[Path], images: Path | None, out: Path, **limits: int
) -> Counts:
    """Writes a corpus to folder `out`, or continues an interrupted run. Copies images without re-encoding.

    `limits` are those of ShardWriter. A pair's .txt is its first caption, its .json has all of them in
    `captions`.

    Raises: DataError when an input is missing, or `out` contains something else.
    """
    if corpus.kind == "pair" and (images is None or not images.is_dir()):
        raise DataError(
            f"{corpus.name}: the folder of images '{images or ''}' does not exist; give --images FOLDER, "
            f"or --shards for what img2dataset wrote{TEXTS if corpus.name == 'own' else ''}"
        )
    inputs = [*map(_contents, _existing(corpus, annotations)), images and str(images.resolve())]
    writer = ShardWriter(out, _fingerprint(corpus, inputs, limits), **limits)
    if writer.complete:
        return _finished_before(writer)
    entries = islice(corpus.read(annotations), writer.counts.entries, None)
    progress = _Progress(corpus.name)
    with writer:
        for number, (entry, image) in enumerate(_read_ahead(entries, images), writer.counts.entries + 1):
            try:
                _write(writer, entry, image)
            except SampleFault as fault:
                writer.leave_out(fault.reason)
                progress.left_out(_named(entry, number), fault)
            progress.show(writer.counts)
        total = writer.total
        if not total.samples:  # leaves no record, so other inputs may follow
            raise DataError(f"{corpus.name}: {_nothing(annotations, total, images)}")
        return writer.close()


def _nothing(annotations: Sequence[Path], total: Counts, images: Path | None) -> str:
    """Says why a conversion has nothing to write."""
    if not total.entries:
        named = ", ".join(f"'{file}'" for file in annotations)
        return f"{named} {'is' if len(annotations) == 1 else 'are'} empty: no entry to make a sample of"
    where = f"; files are looked for below --images '{images}'" if images is not None else ""
    return f"none of {total.entries} entries can be used ({counted(total.dropped)}){where}"


def filter_shards(corpus: Corpus, shards: str, out: Path | None, **limits: int) -> Counts:
    """Counts the usable samples of downloaded shards and copies them to folder `out`, if given.

    Raises: DataError when there are no shards, or `out` contains something else.
    """
    paths = expand_shards(shards)
    writer = None
    if out is not None:
        inputs = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        writer = ShardWriter(out, _fingerprint(corpus, inputs, limits), **limits)
        if writer.complete:
            return _finished_before(writer)
    counts, progress = Counts(), _Progress(corpus.name)
    done = writer.counts.entries if writer is not None else 0
    with writer or nullcontext():
        for key, members in islice(_samples(paths), done, None):
            try:
                captions = _captions(corpus, members)
                if writer is None:
                    counts.add_sample(captions)
                else:
                    writer.write(key, members, captions)
            except SampleFault as fault:
                (writer or counts).leave_out(fault.reason)
                progress.left_out(key, fault)
            progress.show(counts if writer is None else writer.counts)
        return counts if writer is None else writer.close()


def write_urls(corpus: Corpus, annotations: Sequence[Path], out: Path) -> Counts:
    """Writes the entries that pass the corpus's filter as a list for img2dataset.

    The list is tab-separated, with a header: url, caption, id.

    Raises: DataError when the corpus has no URLs, or the list cannot be written.
    """
    if not corpus.urls:
        raise DataError(
            f"{corpus.name}: its published form has no list of URLs; download its archives of images"
        )
    try:
        return _write_list(corpus, annotations, out)
    except OSError as error:
        raise DataError(f"list '{out}': {error.strerror or error}") from error


def _write_list(corpus: Corpus, annotations: Sequence[Path], out: Path) -> Counts:
    """Writes the list. Raises: OSError when that fails."""
    counts, progress = Counts(), _Progress(corpus.name)
    with replacing(out, alone=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, delimiter="\t", lineterminator="\n")
        rows.writerow(["url", "caption", "id"])
        for number, entry in enumerate(corpus.read(annotations), 1):
            if isinstance(entry, Dropped):
                counts.leave_out(entry.reason)
                progress.left_out(_named(entry, number), SampleFault(entry.reason))
            else:
                rows.writerow([entry.url, entry.captions[0], entry.key])
                counts.add_sample(entry.captions[:1])
            progress.show(counts)
    return counts


def image_suffix(data: bytes) -> str:
    """Returns the member suffix for an image's format.

    Raises: SampleFault if it is not a JPEG, PNG or WebP, or cut off.
    """
    return _SUFFIX_OF[read_whole(data).format]


def _write(writer: ShardWriter, entry: Annotated | Dropped, image: bytes | str) -> None:
    """Writes one entry with its image's bytes. Raises: SampleFault with the reason for leaving it out."""
    if isinstance(entry, Dropped):
        raise SampleFault(entry.reason)
    members: dict[str, bytes] = {}
    if entry.images or entry.file:
        if isinstance(image, str):
            raise SampleFault(image)
        members[image_suffix(image)] = image
    record = {**entry.record, **({"url": entry.url} if entry.url else {})}
    if entry.captions:
        members["txt"] = entry.captions[0].encode()
    if entry.captions and members.keys() != {"txt"}:
        record["captions"] = entry.captions
    if record:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        members["json"] = text.encode("utf-8", "ignore")
    writer.write(entry.key, members, entry.captions)


def _named(entry: Annotated | Dropped, number: int) -> str:
    """Returns what an entry is known by: its image, what its annotations call it, or its number from 1 on."""
    if isinstance(entry, Dropped):
        return entry.name or f"entry {number:,}"
    return str(entry.file or next(iter(entry.images), entry.key))


def _read_ahead(
    entries: Iterator[Annotated | Dropped], images: Path | None
) -> Iterator[tuple[Annotated | Dropped, bytes | str]]:
    """Yields entries in order with their images, which threads read ahead, because network disks are slow."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[Annotated | Dropped, Future]] = deque()
        for entry in entries:
            waiting.append((entry, pool.submit(_image_of, entry, images)))
            if len(waiting) > _AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        for entry, image in waiting:
            yield entry, image.result()


def _image_of(entry: Annotated | Dropped, images: Path | None) -> bytes | str:
    """Reads the first image file that exists, or returns why there is none.

    Ignores names that lead out of the image folder. img2dataset names files by their rows in its list, which
    may differ from this one, so the .json next to a file must have the same URL.

    Raises: DataError when a file exists and cannot be read.
    """
    if isinstance(entry, Dropped):
        return NO_FILE
    candidates = [] if entry.file is None else [entry.file]
    if entry.file is None and images is not None:
        names = [Path(name) for name in entry.images]
        candidates = [images / name for name in names if not name.is_absolute() and ".." not in name.parts]
    reason = NO_FILE
    for path in candidates:
        try:
            image = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):  # a NUL in the name
            continue
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                continue
            raise DataError(f"image '{path}' cannot be read: {error.strerror}") from error
        if not entry.url or _downloaded_from(path) in (None, entry.url):
            return image
        reason = OTHER_URL
    return reason


def _downloaded_from(image: Path) -> str | None:
    """Returns the URL in the .json that img2dataset writes next to an image; None if there is none."""
    try:
        return _record(image.with_suffix(".json").read_bytes()).get("url")
    except OSError:
        return None


def _samples(shards: Sequence[Path]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields the indexed members of every sample in order; warns about damage that the index leaves out."""
    for shard, index in zip(shards, load_indexes(shards), strict=True):
        if damage := faults.lossy(index.faults):
            log.warning("%s: %s; the samples that the index leaves out are missing", shard, counted(damage))
        order = np.argsort(index.member_sample, kind="stable")
        starts = np.searchsorted(index.member_sample[order], np.arange(len(index) + 1))
        with shard.open("rb") as stream:
            for sample, key in enumerate(index.names()):
                members = {}
                for row in order[starts[sample] : starts[sample + 1]]:
                    stream.seek(int(index.member_offset[row]))
                    suffix, size = index.suffixes[index.member_suffix[row]], int(index.member_size[row])
                    members[suffix] = stream.read(size)
                yield key, members


def _captions(corpus: Corpus, members: dict[str, bytes]) -> tuple[str, ...]:
    """Returns the captions of a downloaded sample. Raises: SampleFault when it is unusable."""
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        raise SampleFault(faults.NO_IMAGE)
    read_whole(image)
    caption = clean(members.get("txt", b"").decode("utf-8-sig", "replace"))
    if not caption:
        raise SampleFault(faults.MISSING_CAPTION if "txt" not in members else faults.EMPTY_CAPTION)
    if (reason := corpus.reason_to_drop(caption, _record(members.get("json", b"")))) is not None:
        raise SampleFault(reason)
    return (caption,)


def _record(data: bytes) -> dict[str, Any]:
    """Parses a sample's .json; returns an empty dictionary for anything but an object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _existing(corpus: Corpus, files: Sequence[Path]) -> Sequence[Path]:
    """Returns the files. Raises: DataError for a missing one."""
    for file in files:
        if not file.exists():
            raise DataError(
                f"{corpus.name}: '{file}' does not exist; it should be {corpus.annotations}, see docs/data.md"
            )
    return files


def _contents(file: Path) -> tuple[str, str]:
    """Identifies annotations wherever they lie: a file's name and SHA-256, or that of the names in a folder.

    Raises: DataError when they cannot be read.
    """
    try:
        if not file.is_dir():
            return file.name, sha256_of(file)
        names = sorted(path.relative_to(file).as_posix() for path in file.rglob("*"))
    except OSError as error:
        raise DataError(f"annotations '{file}' cannot be read: {error.strerror}") from error
    return file.name, hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def _fingerprint(corpus: Corpus, inputs: Sequence[Any], limits: dict[str, int]) -> str:
    """Hashes everything that determines the shards: corpus, what identifies the inputs, limits."""
    made_from = json.dumps([dataclasses.asdict(corpus), inputs, sorted(limits.items())])
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def _finished_before(writer: ShardWriter) -> Counts:
    """Says that nothing is read, and returns the counts of the earlier call."""
    log.info("'%s' was finished before, nothing is read; delete it to prepare it again", writer.out)
    return writer.counts


class _Progress:
    """Logs the progress of a conversion from time to time, and the first entries that are left out."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, time.monotonic()
        self._left_out = Counter[str]()

    def left_out(self, name: str, fault: SampleFault) -> None:
        """Names an entry that is left out, the first few for each reason."""
        self._left_out[fault.reason] += 1
        if self._left_out[fault.reason] <= _NAMED:
            log.warning("%s: left out '%s': %s", self.name, printable(name), fault)

    def show(self, counts: Counts) -> None:
        """Logs the counts of finished shards, unless the last log line is recent."""
        if time.monotonic() - self.last > _EVERY_S:
            self.last = time.monotonic()
            log.info(
                "%s: %d samples of %d entries in finished shards", self.name, counts.samples, counts.entries
            )
