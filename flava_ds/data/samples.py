"""Decodes the raw bytes of a sample's members, independent of how the source reads them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.config import Config, SourceConfig
from flava_ds.data.decode import decode_image, decoder
from flava_ds.data.order import uniforms
from flava_ds.data.plan import TargetsPlan
from flava_ds.data.regions import MAX_CHARACTERS, SURROGATE, SampleRegions, read_regions
from flava_ds.data.skip_list import SkipList, load_skip_list
from flava_ds.data.targets import SampleTargets, read_targets
from flava_ds.errors import ConfigError, DataError
from flava_ds.plain_text import escaped
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.members import IMAGE_SUFFIXES

CAPTION_STREAM = 4
_NPY = re.compile(
    rb"\{'descr': '[<|]([iu])([1248])', 'fortran_order': False, 'shape': \(([0-9, ]{0,40})\), \} *\n"
)
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One decoded sample.

    Shapes:
        image  [3 H W]  uint8 at its own size; None in sources of text, or of regions
        codes  [n]      int64 precomputed codebook indices, or None
    """

    key: str
    index: int
    seed: int
    image: Tensor | None = None
    text: str | None = None
    captions: tuple[str, ...] = ()
    codes: np.ndarray | None = None
    regions: SampleRegions | None = None
    targets: SampleTargets | None = None
    identity: int | None = None
    """What the image shows, hashed to 63 bits, if the source tells it."""


def amiss(sample: object, source: SourceConfig) -> str | None:
    """Says what keeps batches of a source from a sample that its reader has given; None if nothing does."""
    if not isinstance(sample, Sample):
        found = f"an object of the class {type(sample).__name__}, not a Sample"
        return found if sample is not None else "no sample; it has to yield one for each position"
    image, text = sample.image, sample.text
    if source.kind != "text" and not source.regions_key:
        if not isinstance(image, Tensor):
            return f"an image of the class {type(image).__name__}, not a tensor [3 H W] of uint8"
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            return f"an image of shape {list(image.shape)} and {image.dtype}, not [3 H W] of torch.uint8"
    if source.kind != "image" and not isinstance(text, str):
        return f"a text of the class {type(text).__name__}, not a str"
    return None


class SampleDecoder:
    """Decodes the samples of one source. Picklable."""

    def __init__(self, config: Config, name: str) -> None:
        """Raises: DataError when the source's skip list cannot be read."""
        self.config, self.source = config, config.data.sources[name]
        self.targets = TargetsPlan.of(config, self.source)
        self.skip_list: SkipList | None = None
        if self.source.skip_list:
            self.skip_list = load_skip_list(self.source.skip_list)
            if self.source.regions_key and self.skip_list.reads_images:
                raise DataError(
                    f"source '{name}': its skip list '{self.source.skip_list}' names images by content, "
                    "but a source with regions reads no images; list samples by shard and key"
                )
        if self.source.kind != "text" and not self.source.regions_key:
            decoder()  # is loaded now, before workers are forked

    def __call__(
        self, fields: Mapping[str, bytes], key: str, index: int, seed: int, draw: float | None = None
    ) -> Sample:
        """Decodes the fields of `member_fields`. Chooses one of several captions by `draw`, or the seed.

        Raises: SampleFault with the reason.
        """
        captions = self._captions(fields["caption"]) if "caption" in fields else ()
        text = None
        if captions:
            if len(captions) > 1 and draw is None:
                draw = float(uniforms(np.array([seed], dtype=np.uint64), 1, stream=CAPTION_STREAM)[0, 0])
            text = captions[int((draw or 0.0) * len(captions))]
        return Sample(
            key=key,
            index=index,
            seed=seed,
            image=self._image(fields["image"]) if "image" in fields else None,
            text=text,
            captions=captions,
            codes=self._codes(fields["codes"]) if "codes" in fields else None,
            regions=self._regions(fields["regions"]) if "regions" in fields else None,
            targets=self._targets(fields["targets"]) if "targets" in fields else None,
            identity=self._identity(fields["metadata"]) if "metadata" in fields else None,
        )

    def check_key(self, key: str, shard: str) -> None:
        """Raises SampleFault 'skip list' for a sample that the skip list names by its key."""
        if self.skip_list is not None and self.skip_list.has_key(key, shard):
            raise SampleFault(faults.SKIP_LIST, "key")

    def check_size(self, field: str, size: int) -> None:
        """Raises SampleFault 'too many bytes' for a member above data.max_member_bytes."""
        if size > self.config.data.max_member_bytes:
            raise self.too_large(field, size)

    def too_large(self, field: str, size: int) -> SampleFault:
        """Returns what is wrong with a member above data.max_member_bytes."""
        most = self.config.data.max_member_bytes
        return SampleFault(faults.TOO_MANY_BYTES, f"{field} of {size}, at most data.max_member_bytes {most}")

    def _image(self, data: bytes) -> Tensor:
        """Decodes an image unless the skip list has it: [3 H W] uint8."""
        if self.skip_list is not None and self.skip_list.has_bytes(data):
            raise SampleFault(faults.SKIP_LIST, "sha256")
        image = decode_image(data, self.config.data.max_image_pixels)
        if self.skip_list is not None and self.skip_list.has_pixels(image):
            raise SampleFault(faults.SKIP_LIST, "phash")
        return image

    def _captions(self, data: bytes) -> tuple[str, ...]:
        """Reads the captions from the .txt, or from the .json's field."""
        key = self.source.caption_key
        value = _decode_text(data) if key is None else _metadata(data).get(key)
        values = value if isinstance(value, list) else [value]
        texts = [item.strip()[:MAX_CHARACTERS] for item in values if isinstance(item, str)]
        if not texts:
            raise SampleFault(
                faults.MISSING_CAPTION, f"field '{key}' holds {type(value).__name__}" if key else ""
            )
        texts = [text for text in texts if text]
        if not texts:
            raise SampleFault(faults.EMPTY_CAPTION)
        if any(SURROGATE.search(text) for text in texts):
            raise SampleFault(faults.NOT_UTF8, "half of a surrogate pair")
        return tuple(texts)

    def _identity(self, data: bytes) -> int:
        """Hashes what an image shows, by the .json: equal for the same text or integer, on every machine."""
        key = str(self.source.identity_key)  # only a source with one has the field
        value = _metadata(data).get(key)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise SampleFault(faults.NO_IDENTITY, f"field '{key}' holds {type(value).__name__}")
        if isinstance(value, str) and SURROGATE.search(value):
            raise SampleFault(faults.NOT_UTF8, f"half of a surrogate pair in field '{key}'")
        digest = hashlib.blake2b(f"{value}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _codes(self, data: bytes) -> np.ndarray:
        """Reads precomputed codebook indices, in the order of the patches."""
        wanted, limit = self.config.model.num_patches, self.config.codebook.vocab_size
        codes = read_integers(data)
        if codes.size != wanted:
            raise SampleFault(
                faults.BAD_CODES,
                f"expected {wanted} integers, one for each patch of the model's images, got {codes.size}",
            )
        codes = codes.reshape(-1).astype(np.int64)
        if codes.min() < 0 or codes.max() >= limit:
            raise SampleFault(
                faults.BAD_CODES, f"values {codes.min()} .. {codes.max()}, but codebook.vocab_size is {limit}"
            )
        return codes

    def _regions(self, data: bytes) -> SampleRegions:
        """Reads regions, with the detector's classes if an objective predicts them."""
        wanted = self.config.model.regions
        return read_regions(
            data,
            feature_size=wanted.feature_size,
            num_classes=wanted.num_classes if self.config.predicts_region_classes else 0,
            most=self.source.max_regions,
        )

    def _targets(self, data: bytes) -> SampleTargets | None:
        """Reads labels, if an objective reads them."""
        return None if self.targets is None else read_targets(data, self.targets)


def member_fields(name: str, source: SourceConfig) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """Returns the suffixes of each field that a source reads, and the fault if a required one is missing."""
    fields: dict[str, Sequence[str]] = {}
    required = {}
    if source.kind != "text" and source.regions_key:
        fields["regions"] = (_suffix(name, "regions_key", source.regions_key, "safetensors"),)
        required["regions"] = faults.NO_REGIONS
    elif source.kind != "text":
        fields["image"], required["image"] = IMAGE_SUFFIXES, faults.NO_IMAGE
    if source.kind != "image":
        suffix = "txt" if source.caption_key is None else "json"
        fields["caption"], required["caption"] = (suffix,), faults.MISSING_CAPTION
    if source.kind != "text" and source.image_codes_key:
        fields["codes"] = (_suffix(name, "image_codes_key", source.image_codes_key, "npy"),)
        required["codes"] = faults.BAD_CODES
    if source.targets_key:
        fields["targets"] = (_suffix(name, "targets_key", source.targets_key, "safetensors"),)
        required["targets"] = faults.NO_TARGETS
    if source.identity_key:
        fields["metadata"], required["metadata"] = ("json",), faults.NO_IDENTITY
    return fields, required


def _suffix(name: str, field: str, key: str, ending: str) -> str:
    """Returns the suffix of the members that a source's key names. Raises: ConfigError for another ending."""
    suffix = key.lower().lstrip(".")
    if suffix.split(".")[-1] != ending:
        what = field.removesuffix("_key").removeprefix("image_")
        raise ConfigError(f"source '{name}': {field} '{key}' must end with {ending}, e.g. '{what}.{ending}'")
    return suffix


def read_integers(data: bytes) -> np.ndarray:
    """Reads an .npy of integers: [n].

    Accepts only the exact header that numpy writes. Evaluates and unpickles nothing, and checks the claimed
    size against the data.

    Raises: SampleFault 'bad image codes' for anything else.
    """
    start = 10 if data[6:7] == b"\x01" else 12
    length = int.from_bytes(data[8:start], "little")
    match = None
    if data.startswith(b"\x93NUMPY") and length <= len(data):
        match = _NPY.fullmatch(data[start : start + length])
    if match is None:
        raise SampleFault(
            faults.BAD_CODES, "not an .npy of little-endian integers in C order; pickled arrays are refused"
        )
    width, count = int(match[2]), math.prod(int(size) for size in match[3].split(b",") if size.strip())
    if len(data) != start + length + count * width:
        raise SampleFault(
            faults.BAD_CODES, f"{len(data)} bytes do not match the {count} integers of the header"
        )
    return np.frombuffer(data, dtype=np.dtype(f"<{match[1].decode()}{width}"), offset=start + length)


def seeds_of(samples: Sequence[Sample]) -> np.ndarray:
    """Returns the samples' seeds: [b] uint64."""
    return np.array([sample.seed for sample in samples], dtype=np.uint64)


def tags_of(sample: Sample) -> str:
    """Returns the tags of a sample's regions; empty without regions or tags."""
    return "" if sample.regions is None else sample.regions.tags


def printable(text: str) -> str:
    """Escapes unprintable characters and truncates long text."""
    return escaped(text[:_SHOWN_CHARACTERS]) + "..." * (len(text) > _SHOWN_CHARACTERS)


def _decode_text(data: bytes) -> str:
    """Decodes UTF-8, with or without a byte-order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleFault(faults.NOT_UTF8, f"byte {error.start}") from error


def _metadata(data: bytes) -> dict[str, Any]:
    """Parses a .json member; returns an empty dictionary for anything but an object."""
    try:
        value = json.loads(_decode_text(data))
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or an integer that is too long
        raise SampleFault(faults.UNDECODABLE, f"json: {error}") from error
    return value if isinstance(value, dict) else {}
