"""Copies shards and adds a member that is computed from each image, so that training need not compute it."""

from __future__ import annotations

import json
import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flava_ds.data.decode import decode_image
from flava_ds.data.samples import printable
from flava_ds.data.transforms import CHUNK_BYTES
from flava_ds.errors import DataError
from flava_ds.prepare.shard_writer import add_member
from flava_ds.storage import faults
from flava_ds.storage.atomic import replacing, write_json
from flava_ds.storage.faults import SampleFault, counted
from flava_ds.storage.files import LocalFile
from flava_ds.storage.members import IMAGE_SUFFIXES, sample_key
from flava_ds.storage.shards import expand_shards
from flava_ds.storage.tar_headers import tar_members

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AddedMember:
    """A member that is added after each image."""

    what: str
    """What it holds, in the plural."""
    suffix: str
    """Suffix of its name; an earlier member with it is left out."""
    maker: dict[str, str]
    """What computes it -> a fingerprint of that, as in the record beside a shard."""
    compute: Callable[[list[Tensor]], Sequence[bytes]]
    """From decoded images, each [3 H W] uint8, to the members' bytes. Gets no more images at a time than fill
    CHUNK_BYTES."""


@dataclass(frozen=True, kw_only=True)
class AddedReport:
    """The counts of `add_members`: `samples` have the member; the image of the `failed` ones could not be
    decoded, and is copied as it is.
    """

    shards_written: int
    shards_kept: int
    samples: int
    failed: int

    def __str__(self) -> str:
        kept = f", {self.shards_kept} kept from before" if self.shards_kept else ""
        failed = f", and {self.failed:,} more with a picture that cannot be decoded" if self.failed else ""
        return f"shards: {self.shards_written} written{kept}; samples: {self.samples:,}{failed}"


def add_members(
    place: str,
    member: AddedMember,
    *,
    out: Path | None = None,
    batch_size: int = 64,
    on_shard: Callable[[Path, int], None],
) -> AddedReport:
    """Copies every shard of `place` to folder `out`, adding the member after each image.

    Each shard is written under a temporary name and renamed. Its bytes depend only on the shard and on what
    computes the member, and shards finished earlier with the same are kept, so an interrupted run continues
    with the next shard. `out` None replaces the shards in place. Of a damaged shard the members that training
    reads are copied, with a warning.

    Raises: DataError for unreadable or clashing shards, and for a damaged one to be replaced in place.
    """
    shards = expand_shards(place)
    _check(place, shards, out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    written = kept = samples = failed = 0
    for shard in shards:
        target = shard if out is None else out / shard.name
        record = target.with_name(f"{target.name}.{member.what}.json")
        if done := _finished(target, record, shard, member):
            kept += 1
        else:
            done = _write_shard(shard, target, member, batch_size)
            report = {**member.maker, **done, **_stat("target", target), **_stat("source", shard)}
            write_json(record, report)
            written += 1
        samples, failed = samples + done["samples"], failed + done["failed"]
        on_shard(target, done["samples"])
    return AddedReport(shards_written=written, shards_kept=kept, samples=samples, failed=failed)


def _write_shard(shard: Path, target: Path, member: AddedMember, batch_size: int) -> dict[str, int]:
    """Copies one shard with members added; returns the counts of their images and of undecodable ones."""
    counts, found, seen = {"samples": 0, "failed": 0}, Counter[str](), set[str]()
    try:
        with (
            replacing(target, alone=True) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for group in _groups(shard, member.suffix, batch_size, found):
                _add_group(tar, shard, group, member, counts, seen)
            _check_damage(shard, target, found, empty=not tar.offset)
    except OSError as error:
        raise DataError(f"shard '{target}' cannot be written: {error.strerror or error}") from error
    return counts


def _check_damage(shard: Path, target: Path, found: Counter[str], *, empty: bool) -> None:
    """Warns about a damaged shard. Raises: DataError if nothing of it can be copied, or if the copy is to
    replace it.
    """
    if not found:
        return
    if empty:
        raise DataError(f"shard '{shard}': no member can be read ({counted(found)}); is it a tar file?")
    ends = {faults.TRUNCATED_SHARD, faults.BROKEN_HEADER} & found.keys()
    if ends and target == shard:
        raise DataError(
            f"shard '{shard}': {counted(found)}; a copy in its place would lose all that comes after: give "
            "another folder to write to"
        )
    log.warning("shard '%s': %s; %s", shard, counted(found), "copied up to there" if ends else "copied whole")


def _add_group(
    tar: tarfile.TarFile,
    shard: Path,
    group: list[tuple[str, bytes]],
    member: AddedMember,
    counts: dict[str, int],
    seen: set[str],
) -> None:
    """Writes a group of members, with the added one after each image but a second one of a sample, of which
    training reads the first; `seen` has the keys of all before.
    """
    images: dict[int, Tensor] = {}
    added: dict[int, bytes] = {}

    def compute() -> None:
        added.update(zip(images, member.compute(list(images.values())), strict=True))
        images.clear()

    for number, (name, data) in enumerate(group):
        key, suffix = _split(name)
        if suffix in IMAGE_SUFFIXES and key not in seen:
            seen.add(key)
            try:
                images[number] = decode_image(data)
            except SampleFault as fault:
                counts["failed"] += 1
                log.warning("shard '%s': '%s' gets no %s: %s", shard, printable(name), member.what, fault)
            if sum(image.nbytes for image in images.values()) >= CHUNK_BYTES:
                compute()
    if images:
        compute()
    counts["samples"] += len(added)
    for number, (name, data) in enumerate(group):
        add_member(tar, name, data)
        if number in added:
            add_member(tar, f"{_split(name)[0]}.{member.suffix}", added[number])


def _groups(
    shard: Path, suffix: str, batch_size: int, found: Counter[str]
) -> Iterator[list[tuple[str, bytes]]]:
    """Yields a shard's files in order, without those of `suffix`, in groups that end at `batch_size` images
    or at CHUNK_BYTES.

    Reads what the index reads and counts damage in `found`. Raises: DataError when the shard cannot be read.
    """
    group, pictures, held = [], 0, 0
    with closing(LocalFile(shard)) as file:
        for raw, offset, size in tar_members(file, found):
            name = raw.decode("utf-8", "surrogateescape")
            if _split(name)[1] == suffix:
                continue
            data = file.pread(size, offset)
            if len(data) < size:
                raise DataError(f"shard '{shard}': {len(data)} of {size} bytes of '{printable(name)}' read")
            group.append((name, data))
            pictures += _split(name)[1] in IMAGE_SUFFIXES
            held += size
            if pictures == batch_size or held >= CHUNK_BYTES:
                yield group
                group, pictures, held = [], 0, 0
    if group:
        yield group


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name into key and suffix; tarfile decodes bytes that are not UTF-8 as surrogates."""
    key, suffix = sample_key(name.encode("utf-8", "surrogateescape"))
    return key.decode("utf-8", "surrogateescape"), suffix


def _check(place: str, shards: list[Path], out: Path | None) -> None:
    """Raises DataError for an `out` in which shards would overwrite each other, or themselves."""
    names = [shard.name for shard in shards]
    if out is not None and len(set(names)) != len(names):
        raise DataError(
            f"'{place}': two shards have the same file name and would overwrite each other in '{out}'; "
            "convert them separately"
        )
    if out is not None and any(shard.parent.resolve() == out.resolve() for shard in shards):
        raise DataError(f"'{place}': out '{out}' is the folder of the shards themselves; choose another")


def _finished(target: Path, record: Path, shard: Path, member: AddedMember) -> dict[str, int] | None:
    """Returns the counts of a shard already written from the same source by the same, otherwise None."""
    try:
        saved = json.loads(record.read_text(encoding="utf-8"))
        current = {**member.maker, **_stat("target", target), **_stat("source", shard)}
        if any(saved.get(name) != value for name, value in current.items()):
            return None
        return {name: int(saved[name]) for name in ("samples", "failed")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _stat(name: str, path: Path) -> dict[str, int]:
    """Identifies a file's version by size and modification time."""
    stat = path.stat()
    return {f"{name}_bytes": stat.st_size, f"{name}_mtime_ns": stat.st_mtime_ns}
