"""Precomputes image codes: copies shards and adds the codes, so that training needs no image tokenizer."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.config import Config, SourceConfig
from flava_ds.data.decode import decode_image
from flava_ds.data.samples import printable
from flava_ds.data.transforms import center_pixels
from flava_ds.errors import ConfigError, DataError
from flava_ds.prepare.shard_writer import add_member
from flava_ds.storage.atomic import replacing, write_whole
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.index import IMAGE_SUFFIXES, sample_key
from flava_ds.storage.shards import expand_shards

log = logging.getLogger(__name__)

CODES_SUFFIX = "codes.npy"
"""Suffix of the members with codes; SourceConfig.image_codes_key must name it."""


@dataclass(frozen=True, kw_only=True)
class CodesReport:
    """The counts of `write_codes`; `failed` images could not be decoded and are copied without codes."""

    shards_written: int
    shards_kept: int
    samples: int
    failed: int


def write_codes(
    source: SourceConfig,
    codebook: ImageCodebook,
    config: Config,
    *,
    out: Path | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    on_shard: Callable[[Path, int], None] = lambda shard, samples: log.info(
        "%s: codes of %d samples", shard, samples
    ),
) -> CodesReport:
    """Copies every shard of `source` to folder `out`, adding a member KEY.codes.npy per image: uint16 [n].

    The codes are row by row, and those of config.UNCHANGED (shorter side to codebook.image_size, centre
    crop), so use the shards with that transform. Each shard is written under a temporary name and renamed.
    Its bytes depend only on the shard, the codebook and the sizes, and shards finished earlier with the same
    codebook are kept, so an interrupted run continues with the next shard. `out` None replaces the shards in
    place.

    Raises: ConfigError for a text source, a vocabulary over 65,536, or a codebook whose grid does not match
    the model's; DataError for unreadable or clashing shards.
    """
    shards = expand_shards(source.shards)
    _check(source, codebook, config, shards, out)
    stamp = codebook.fingerprint()
    codebook = codebook.to(device)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    written = kept = samples = failed = 0
    for shard in shards:
        target = shard if out is None else out / shard.name
        record = target.with_name(target.name + ".codes.json")
        if done := _finished(target, record, shard, stamp):
            kept += 1
        else:
            done = _write_shard(shard, target, lambda images: _codes(codebook, images), batch_size)
            report = {"codebook": stamp, **done, **_stat("target", target), **_stat("source", shard)}
            write_whole(record, json.dumps(report, indent=2) + "\n")
            written += 1
        samples, failed = samples + done["samples"], failed + done["failed"]
        on_shard(target, done["samples"])
    return CodesReport(shards_written=written, shards_kept=kept, samples=samples, failed=failed)


def _codes(codebook: ImageCodebook, images: list[Tensor]) -> np.ndarray:
    """Encodes decoded images under the unchanging transform: b times [3 H W] uint8 -> [b n] uint16."""
    pixels = center_pixels(images, codebook.config.image_size)
    return codebook.encode(pixels.to(codebook.encoder.input.weight.device)).cpu().numpy().astype(np.uint16)


def _write_shard(
    shard: Path, target: Path, encode: Callable[[list[Tensor]], np.ndarray], batch_size: int
) -> dict[str, int]:
    """Copies one shard with codes added; returns the counts of coded and of undecodable images."""
    counts = {"samples": 0, "failed": 0}
    try:
        with (
            replacing(target, alone=True) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for group in _groups(shard, batch_size):
                _add_group(tar, shard, group, encode, counts)
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"shard '{shard}': {error}; check that it is an undamaged tar file and that "
            f"'{target.parent}' is writable"
        ) from error
    return counts


def _add_group(
    tar: tarfile.TarFile,
    shard: Path,
    group: list[tuple[str, bytes]],
    encode: Callable[[list[Tensor]], np.ndarray],
    counts: dict[str, int],
) -> None:
    """Writes a group of members, with the codes after each image."""
    images: dict[int, Tensor] = {}
    for number, (name, data) in enumerate(group):
        if _split(name)[1] in IMAGE_SUFFIXES:
            try:
                images[number] = decode_image(data)
            except SampleFault as fault:
                counts["failed"] += 1
                log.warning("shard '%s': '%s' gets no codes: %s", shard, printable(name), fault)
    codes = dict(zip(images, encode(list(images.values())), strict=True)) if images else {}
    counts["samples"] += len(images)
    for number, (name, data) in enumerate(group):
        add_member(tar, name, data)
        if number in codes:
            buffer = io.BytesIO()
            np.save(buffer, codes[number], allow_pickle=False)
            add_member(tar, f"{_split(name)[0]}.{CODES_SUFFIX}", buffer.getvalue())


def _groups(shard: Path, batch_size: int) -> Iterator[list[tuple[str, bytes]]]:
    """Yields a shard's files in order, in groups of at most `batch_size` images; skips earlier codes."""
    group, pictures = [], 0
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            if not member.isreg() or _split(member.name)[1] == CODES_SUFFIX:
                continue
            group.append((member.name, tar.extractfile(member).read()))
            pictures += _split(member.name)[1] in IMAGE_SUFFIXES
            if pictures == batch_size:
                yield group
                group, pictures = [], 0
    if group:
        yield group


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name into key and suffix; tarfile decodes bytes that are not UTF-8 as surrogates."""
    key, suffix = sample_key(name.encode("utf-8", "surrogateescape"))
    return key.decode("utf-8", "surrogateescape"), suffix


def _check(
    source: SourceConfig, codebook: ImageCodebook, config: Config, shards: list[Path], out: Path | None
) -> None:
    """Raises an error for settings that cannot give usable codes."""
    if source.kind == "text":
        raise ConfigError(f"'{source.shards}' is a source of kind 'text'; only images have codes")
    if codebook.config.vocab_size > 2**16:
        raise ConfigError(
            f"codebook.vocab_size {codebook.config.vocab_size} does not fit the shards' uint16; use at "
            "most 65536"
        )
    if codebook.config.grid_size != config.model.image.grid_size:
        codes, patches = codebook.config.grid_size, config.model.image.grid_size
        raise ConfigError(
            f"the codebook gives {codes} x {codes} codes, but model.image has {patches} x {patches} patches; "
            "change codebook.image_size"
        )
    names = [shard.name for shard in shards]
    if out is not None and len(set(names)) != len(names):
        raise DataError(
            f"'{source.shards}': two shards have the same file name and would overwrite each other in "
            f"'{out}'; convert them separately"
        )
    if out is not None and any(shard.parent.resolve() == out.resolve() for shard in shards):
        raise DataError(
            f"'{source.shards}': out '{out}' is the folder of the shards themselves; choose another, or "
            "None to replace them in place"
        )


def _finished(target: Path, record: Path, shard: Path, stamp: str) -> dict[str, int] | None:
    """Returns the counts of a shard already written from the same source and codebook, otherwise None."""
    try:
        saved = json.loads(record.read_text(encoding="utf-8"))
        current = {"codebook": stamp, **_stat("target", target), **_stat("source", shard)}
        if any(saved.get(name) != value for name, value in current.items()):
            return None
        return {name: int(saved[name]) for name in ("samples", "failed")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _stat(name: str, path: Path) -> dict[str, int]:
    """Identifies a file's version by size and modification time."""
    stat = path.stat()
    return {f"{name}_bytes": stat.st_size, f"{name}_mtime_ns": stat.st_mtime_ns}
