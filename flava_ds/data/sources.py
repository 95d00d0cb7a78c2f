"""One corpus in shards: index, raw bytes of a sample, decoded sample."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from flava_ds.config import Config, SourceConfig
from flava_ds.data.decode import decode_image, decoder
from flava_ds.data.order import Order, source_seed, uniforms
from flava_ds.data.skip_list import SkipList, load_skip_list
from flava_ds.errors import ConfigError, DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.index import IMAGE_SUFFIXES, counted
from flava_ds.storage.retry import policy_of
from flava_ds.storage.sample_table import SampleTable
from flava_ds.storage.shard_reader import ShardReader
from flava_ds.storage.shards import list_shards

MAX_CHARACTERS = 10_000
"""Longer texts are cut before tokenisation."""
MIN_SEEN = 100
"""Samples seen before a share of unusable ones stops the run."""
CAPTION_STREAM = 4
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NPY = re.compile(rb"\{'descr': '[<|]([iu])([1248])', 'fortran_order': False, 'shape': \(([0-9, ]{0,40})\), \} *\n")
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One decoded sample.

    Shapes:
        image  [3 H W]  uint8 at its own size; None in text sources
        codes  [n]      int64 precomputed codebook indices, or None
    """

    key: str
    index: int
    seed: int
    image: Tensor | None = None
    text: str | None = None
    captions: tuple[str, ...] = ()
    codes: np.ndarray | None = None
    metadata: dict[str, Any] | None = None


class ShardSource:
    """Reads samples of one source by number, in any order. Indexes its shards on construction."""

    def __init__(self, config: Config, name: str, *, metadata: bool = False) -> None:
        """`name` is one of config.data.sources. `metadata` also reads each sample's .json, which training leaves alone.

        Raises: DataError when shards are missing, hold no usable sample, or lack more than max_skipped_share of what the kind needs.
        """
        source = config.data.sources[name]
        self.config, self.name, self.source, self.kind = config, name, source, source.kind
        self.seed = source_seed(name, source.seed)
        fields, required = _fields(name, source, metadata)
        self.table = SampleTable(list_shards(source.shards, name, policy_of(config)), fields, required)
        self.skip_list: SkipList | None = load_skip_list(source.skip_list) if source.skip_list else None
        self._files = ShardReader(self.table.shards, self.table.stamps, config.data)
        self._check(required)
        data = config.data
        self.order = Order(
            seed=config.seed,
            source=self.seed,
            size=len(self),
            shuffle=data.shuffle,
            block_size=data.shuffle_block_size,
            window_blocks=data.shuffle_window_blocks,
        )
        if self.kind != "text":
            decoder()

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int, only: Sequence[str] | None = None) -> dict[str, bytes]:
        """Returns the raw bytes of a sample's fields: 'image', 'caption', 'codes', 'metadata', those that the source needs and the sample has;
        no others than `only` when that is given.

        Raises: SampleFault 'truncated' when the shard is shorter than its index says, 'too many bytes' for a member above data.max_member_bytes,
        'skip list' when the list has its key; DataError when the shard cannot be opened.
        """
        shard = self.table.shard_of(index)
        if self.skip_list is not None and self.skip_list.has_key(self.table.key(index), str(self.table.shards[shard])):
            raise SampleFault(faults.SKIP_LIST, "key")
        found = {}
        for name, (offsets, sizes) in self.table.columns.items():
            offset, size = int(offsets[index]), int(sizes[index])
            if offset >= 0 and (only is None or name in only):
                if size > self.config.data.max_member_bytes:
                    raise SampleFault(faults.TOO_MANY_BYTES, f"{name} of {size}, at most data.max_member_bytes {self.config.data.max_member_bytes}")
                found[name] = self._files.read(shard, offset, size)
        return found

    def decode(self, fields: dict[str, bytes], index: int, seed: int, draw: float | None = None) -> Sample:
        """Decodes what `read` returned. One caption of several is chosen by the seed, or by `draw` in [0, 1) when that is given.

        Raises: SampleFault with the reason.
        """
        captions = self._captions(fields["caption"]) if "caption" in fields else ()
        text = None
        if captions:
            if len(captions) > 1 and draw is None:
                draw = float(uniforms(np.array([seed], dtype=np.uint64), 1, stream=CAPTION_STREAM)[0, 0])
            text = captions[int(draw * len(captions)) if len(captions) > 1 else 0]
        return Sample(
            key=self.table.key(index),
            index=index,
            seed=seed,
            image=self._image(fields["image"]) if "image" in fields else None,
            text=text,
            captions=captions,
            codes=self._codes(fields["codes"]) if "codes" in fields else None,
            metadata=_metadata(fields["metadata"]) if "metadata" in fields else None,
        )

    def describe(self, index: int) -> dict[str, Any]:
        """Tells a sample from all others, for the quarantine list: source, shard, key, and the offset of its first field in the shard."""
        offsets = [int(offset[index]) for offset, _ in self.table.columns.values() if offset[index] >= 0]
        shard = str(self.table.shards[self.table.shard_of(index)])
        return {"source": self.name, "shard": shard, "key": self.table.key(index), "offset": min(offsets, default=-1)}

    def where(self, index: int) -> str:
        """Names a sample for messages: its key, with what a terminal would obey escaped, and its shard."""
        return f"'{printable(self.table.key(index))}' in {self.table.shards[self.table.shard_of(index)]}"

    def _image(self, data: bytes) -> Tensor:
        """Decodes a picture that is not on the skip list: [3 H W] uint8."""
        if self.skip_list is not None and self.skip_list.has_bytes(data):
            raise SampleFault(faults.SKIP_LIST, "sha256")
        image = decode_image(data, self.config.data.max_image_pixels)
        if self.skip_list is not None and self.skip_list.has_pixels(image):
            raise SampleFault(faults.SKIP_LIST, "phash")
        return image

    def _captions(self, data: bytes) -> tuple[str, ...]:
        """Takes the captions out of the .txt, or out of the .json's field."""
        key = self.source.caption_key
        value = _decode_text(data) if key is None else _metadata(data).get(key)
        values = value if isinstance(value, list) else [value]
        texts = [item.strip()[:MAX_CHARACTERS] for item in values if isinstance(item, str)]
        if not texts:
            raise SampleFault(faults.MISSING_CAPTION, f"field '{key}' holds {type(value).__name__}" if key else "")
        texts = [text for text in texts if text]
        if not texts:
            raise SampleFault(faults.EMPTY_CAPTION)
        if any(_SURROGATE.search(text) for text in texts):
            raise SampleFault(faults.NOT_UTF8, "half of a surrogate pair")
        return tuple(texts)

    def _codes(self, data: bytes) -> np.ndarray:
        """Reads precomputed codebook indices, in the order of the patches."""
        image, limit = self.config.model.image, self.config.codebook.vocab_size
        codes = read_integers(data)
        if codes.size != image.num_patches:
            raise SampleFault(
                faults.BAD_CODES, f"expected {image.num_patches} integers, not {codes.size}: model.image has {image.grid_size} x {image.grid_size} patches"
            )
        codes = codes.reshape(-1).astype(np.int64)
        if codes.min() < 0 or codes.max() >= limit:
            raise SampleFault(faults.BAD_CODES, f"values {codes.min()} .. {codes.max()}, but codebook.vocab_size is {limit}")
        return codes

    def _check(self, required: dict[str, str]) -> None:
        """Refuses a source that has nothing, or too little, to offer."""
        lost = sum(faults.lossy(self.table.faults).values())
        report = f"source '{self.name}': {len(self)} usable samples in {len(self.table.shards)} shards; not usable: {counted(self.table.faults)}"
        if not len(self):
            needs, where = " and ".join(required), f" in {self.table.shards[0]}" if len(self.table.shards) else ""
            key, option = self.source.caption_key, f"--data.sources.{self.name}.caption-key"
            way_out = f"; captions are taken from the .json's '{key}': set {option} None for the .txt" if key else ""
            raise DataError(f"{report}; kind '{self.kind}' needs {needs} of each sample, and there is none{where}{way_out}")
        if len(self) + lost >= MIN_SEEN and lost > self.source.max_skipped_share * (len(self) + lost):
            limit, option = self.source.max_skipped_share, f"--data.sources.{self.name}.max-skipped-share"
            raise DataError(f"{report}; more than max_skipped_share {limit}: repair the shards or raise {option}")


def _fields(name: str, source: SourceConfig, metadata: bool) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """Returns the member suffixes of each field a source reads, and the fault of a sample without a field it must have."""
    fields: dict[str, Sequence[str]] = {}
    required = {}
    if source.kind != "text":
        fields["image"], required["image"] = IMAGE_SUFFIXES, faults.NO_IMAGE
    if source.kind != "image":
        fields["caption"], required["caption"] = ("txt",) if source.caption_key is None else ("json",), faults.MISSING_CAPTION
    if source.kind != "text" and source.image_codes_key:
        suffix = source.image_codes_key.lower().lstrip(".")
        if suffix.split(".")[-1] != "npy":
            raise ConfigError(f"source '{name}': image_codes_key '{source.image_codes_key}' must end with npy, e.g. 'codes.npy'")
        fields["codes"], required["codes"] = (suffix,), faults.BAD_CODES
    if metadata:
        fields["metadata"] = ("json",)
    return fields, required


def read_integers(data: bytes) -> np.ndarray:
    """Reads an .npy of integers by its header's exact words, as numpy writes them: nothing is evaluated or unpickled, and no size that the header
    claims is believed: [n].

    Raises: SampleFault 'bad image codes' for anything else.
    """
    start = 10 if data[6:7] == b"\x01" else 12
    length = int.from_bytes(data[8:start], "little")
    match = _NPY.fullmatch(data[start : start + length]) if data.startswith(b"\x93NUMPY") and length <= len(data) else None
    if match is None:
        raise SampleFault(faults.BAD_CODES, "no .npy of little-endian integers in C order; pickled arrays are refused")
    width, count = int(match[2]), math.prod(int(size) for size in match[3].split(b",") if size.strip())
    if len(data) != start + length + count * width:
        raise SampleFault(faults.BAD_CODES, f"{len(data)} bytes are not the {count} integers that its header tells of")
    return np.frombuffer(data, dtype=np.dtype(f"<{match[1].decode()}{width}"), offset=start + length)


def printable(text: str) -> str:
    """Escapes what is not printable, and cuts what is long."""
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text[:_SHOWN_CHARACTERS])
    return shown + "..." * (len(text) > _SHOWN_CHARACTERS)


def _decode_text(data: bytes) -> str:
    """Decodes UTF-8, with or without a byte-order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleFault(faults.NOT_UTF8, f"byte {error.start}") from error


def _metadata(data: bytes) -> dict[str, Any]:
    """Parses a .json member; anything but an object counts as empty."""
    try:
        value = json.loads(_decode_text(data))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
        raise SampleFault(faults.UNDECODABLE, f"json: {error}") from error
    return value if isinstance(value, dict) else {}
