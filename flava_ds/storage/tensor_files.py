"""safetensors files as streams: written tensor by tensor with a checksum, and read by byte ranges.

The safetensors library only handles whole local files. Checkpoints are written in the background and read in
slices, from disks and object storage.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError, DataError
from flava_ds.storage.atomic import replacing
from flava_ds.storage.files import Readable

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of dtypes in safetensors."""
CHUNK_BYTES = 16 * 2**20
"""Bytes that are hashed and written, or read, at a time."""
MOST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""


class Writable(Protocol):
    """A stream to write to."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class HashingWriter:
    """Passes bytes on and keeps their count and SHA-256."""

    def __init__(self, file: Writable) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        """Writes and hashes the bytes; for large pieces both release the GIL."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def described(self) -> dict[str, int | str]:
        """Returns the file's entry in a manifest: {size in bytes, sha256}."""
        return {"size": self.size, "sha256": self._digest.hexdigest()}


def write_tensors(file: Writable, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file.

    A tensor on a device is copied when its turn comes, so the host never holds all of them. Wider dtypes come
    first, which keeps every tensor aligned.
    """
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        size = tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _name_of(tensors[name].dtype),
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        data = tensors[name].detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), CHUNK_BYTES):
            file.write(data[start : start + CHUNK_BYTES])


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically, with the permissions of any new file.

    `metadata` None says that PyTorch wrote it, which transformers requires. Unlike the library's save_file,
    which lets nobody else read its files and mixes up errors of the disk, it takes views of one storage.

    Raises: CheckpointError when it cannot be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_tensors(file, dict(sorted(tensors.items())), metadata or {"format": "pt"})
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); make room, or name another place"
        ) from error


class Entry(NamedTuple):
    """One tensor of a file: its bytes are `begin` .. `end` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """The header of a safetensors file, and its tensors on request.

    `close` keeps the header; the next read opens the file again.
    """

    def __init__(self, opener: Callable[[], Readable], where: str) -> None:
        """`where` names the file in errors.

        Raises: CheckpointError when it is not a safetensors file.
        """
        self._opener, self.where = opener, where
        self._file: Readable | None = opener()
        file = self._file
        try:
            length = int.from_bytes(self._pread(8, 0), "little")
            if not 2 <= length <= min(MOST_HEADER_BYTES, file.size - 8):
                raise ValueError("its header is truncated")
            header = loads(self._pread(length, 8))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self.entries = {name: _entry(value, 8 + length, file.size) for name, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where} is not a readable safetensors file ({error})") from error

    def read(self, name: str, start: int = 0, numel: int | None = None) -> Tensor:
        """Returns elements `start` .. `start` + `numel` of the flattened tensor, or all of it in its shape.

        Raises: CheckpointError when the tensor is missing or too short, or the file cannot be read.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.where} has no '{name}'; use another checkpoint")
        entry = self.entries[name]
        whole, width = math.prod(entry.shape), entry.dtype.itemsize
        count = whole if numel is None else numel
        if not 0 <= start <= start + count <= whole:
            raise CheckpointError(
                f"{self.where}: '{name}' has {whole} elements, but {start} .. {start + count} were requested"
            )
        values = self.read_at(name, entry.dtype, entry.begin + start * width, count)
        return values.reshape(entry.shape) if numel is None else values

    def read_at(self, name: str, dtype: torch.dtype, begin: int, count: int) -> Tensor:
        """Returns `count` elements of the tensor `name`, flat, from byte `begin` of the file on.

        Raises: CheckpointError when the file ends before, or cannot be read.
        """
        values = torch.empty(count, dtype=dtype)
        target = values.view(torch.uint8).numpy().data if count else memoryview(bytearray())
        for place in range(0, len(target), CHUNK_BYTES):
            size = min(CHUNK_BYTES, len(target) - place)
            data = self._pread(size, begin + place)
            if len(data) != size:
                raise CheckpointError(
                    f"{self.where} ends within '{name}': it is truncated; use another checkpoint"
                )
            target[place : place + size] = data
        return values

    def forget(self, names: Iterable[str]) -> None:
        """Drops the metadata and some tensors' entries, for a reader that keeps what it needs of them."""
        self.metadata = {}
        for name in names:
            del self.entries[name]

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _pread(self, size: int, offset: int) -> bytes:
        if self._file is None:
            self._file = self._opener()
        try:
            return self._file.pread(size, offset)
        except DataError as error:
            raise CheckpointError(str(error)) from error


def _entry(value: dict, data_begin: int, file_size: int) -> Entry:
    """Parses a tensor's entry in a header.

    Raises: ValueError, KeyError or TypeError when it does not fit the file.
    """
    shape, (begin, end) = tuple(value["shape"]), value["data_offsets"]
    if value["dtype"] not in DTYPES:
        raise ValueError(f"its dtype {value['dtype']} is unknown")
    dtype = DTYPES[value["dtype"]]
    if (
        any(type(number) is not int or number < 0 for number in (*shape, begin, end))
        or end - begin != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError("a tensor's size does not agree with its shape")
    if data_begin + end > file_size:
        raise ValueError(f"it has {file_size} bytes, and its tensors need {data_begin + end}")
    return Entry(dtype, shape, data_begin + begin, data_begin + end)


def _name_of(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)
