"""Makes a skip list from the images of an evaluation set, so that a run never trains on them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.data.decode import decode_image
from flava_ds.data.samples import printable
from flava_ds.data.skip_list import load_skip_list, perceptual_hash
from flava_ds.errors import DataError
from flava_ds.prepare.annotations import clean, load_json
from flava_ds.prepare.coco import key_of
from flava_ds.storage.atomic import write_whole
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.index import load_index
from flava_ds.storage.members import IMAGE_SUFFIXES
from flava_ds.storage.shards import expand_shards

log = logging.getLogger(__name__)

BITS = 10
"""Bits of 64 in which a copy of an image may differ; docs/data.md has the measurement behind it."""


def write_skip_list(
    places: Sequence[str],
    out: Path,
    *,
    split_file: Path | None = None,
    splits: Sequence[str] = ("test",),
    bits: int = BITS,
) -> int:
    """Writes the SHA-256 and perceptual hash of every image in folders or shards; returns the entry count.

    With `split_file` (Karpathy's dataset_coco.json or dataset_flickr30k.json), only images of `splits` count,
    and COCO images are also listed by their key from `flava-ds prepare coco`.

    Raises: DataError when a place has no image, or images of the splits are missing from all of them.
    """
    wanted = _split_images(split_file, splits) if split_file is not None else None
    selection = f"{split_file}: " + "+".join(splits) if split_file else "all"
    lines = [f"# images: {', '.join(places) or 'by key only'}; {selection}"]
    by_key = {name: key for name, key in (wanted or {}).items() if key is not None}
    lines += [f"key {key}  # {printable(clean(name))}" for name, key in by_key.items()]
    found: set[str] = set()
    for place in places:
        for name, data in _images(place):
            if wanted is not None and name not in wanted:
                continue
            found.add(name)
            comment = f"# {printable(clean(name))}"
            lines.append(f"sha256 {hashlib.sha256(data).hexdigest()}  {comment}")
            try:
                lines.append(f"phash {perceptual_hash(decode_image(data)):016x} {bits}  {comment}")
            except SampleFault as fault:
                log.warning("'%s' is listed only by its bytes: %s", printable(name), fault)
    if wanted is not None and places and (missing := wanted.keys() - found):
        raise DataError(
            f"{len(missing)} of {len(wanted)} images of {'+'.join(splits)} are not in "
            f"{', '.join(places)}, e.g. {min(missing)}"
        )
    write_whole(out, "\n".join(lines) + "\n")
    return len(load_skip_list(out))


def _split_images(path: Path, splits: Sequence[str]) -> dict[str, str | None]:
    """Returns the file names in Karpathy's splits, with their keys for COCO. Raises: DataError if none."""
    images = load_json(path, "images")["images"]
    found = {
        image["filename"]: key_of(image["cocoid"]) if "cocoid" in image else None
        for image in images
        if image["split"] in splits
    }
    if not found:
        known = ", ".join(sorted({image["split"] for image in images}))
        raise DataError(f"'{path}' has no image of {'+'.join(splits)}; its splits are {known}")
    return found


def _images(place: str) -> Iterator[tuple[str, bytes]]:
    """Yields names and bytes of the images in a folder and its subfolders, or in shards."""
    folder = Path(place).expanduser()
    if folder.is_dir() and not any(folder.glob("*.tar")):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower()[1:] in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"folder '{folder}' holds no {', '.join(IMAGE_SUFFIXES)} file")
        for file in files:
            yield file.name, file.read_bytes()
        return
    for shard in expand_shards(place):
        index = load_index(shard)
        offsets, sizes = index.column(IMAGE_SUFFIXES)
        with shard.open("rb") as stream:
            for key, offset, size in zip(index.names(), offsets.tolist(), sizes.tolist(), strict=True):
                if offset >= 0:
                    stream.seek(offset)
                    yield key, stream.read(size)
