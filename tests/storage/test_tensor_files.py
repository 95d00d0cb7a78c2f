"""safetensors streams against the format's own library, and files that lie about themselves."""

import contextlib
import hashlib
import io
import json
import os
import resource
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flava_ds.errors import CheckpointError
from flava_ds.storage import tensor_files
from flava_ds.storage.files import LocalFile
from flava_ds.storage.tensor_files import HashingWriter, TensorFile, save_tensors, write_tensors

TENSORS = {
    "state": torch.arange(5, dtype=torch.uint8),
    "weight": torch.randn(4, 3),
    "transposed": torch.randn(3, 4).t(),
    "half": torch.randn(7).to(torch.bfloat16),
    "count": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0),
    "flags": torch.tensor([True, False]),
}


def opened(path, content: bytes | None = None) -> TensorFile:
    if content is not None:
        path.write_bytes(content)
    return TensorFile(lambda: LocalFile(path), path.name)


@pytest.mark.parametrize("chunk", [3, tensor_files.CHUNK_BYTES])
def test_the_library_reads_what_is_written_and_the_checksum_is_the_file_s(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tensor_files, "CHUNK_BYTES", chunk)
    with (tmp_path / "a").open("wb") as file:
        writer = HashingWriter(file)
        write_tensors(writer, TENSORS, {"starts": "{}"})
    read = load_file(tmp_path / "a")
    assert read.keys() == TENSORS.keys() and all(
        read[name].dtype == t.dtype and torch.equal(read[name], t) for name, t in TENSORS.items()
    )
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == {"starts": "{}"}
    content = (tmp_path / "a").read_bytes()
    assert writer.described() == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    ours = opened(tmp_path / "a")
    assert all(
        torch.equal(ours.read(name), tensor) for name, tensor in TENSORS.items()
    ) and ours.metadata == {"starts": "{}"}
    ours.close()
    assert torch.equal(ours.read("weight", 5, 4), TENSORS["weight"].reshape(-1)[5:9])
    ours.close()


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "a")
    file = opened(tmp_path / "a")
    assert all(torch.equal(file.read(name), tensor) for name, tensor in tensors.items())


def test_a_whole_file_is_the_library_s_to_the_byte_and_has_the_permissions_of_any_new_one(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items() if tensor.dtype == torch.float32}
    tensors["a view"] = tensors["weight"].flatten()[1:5]
    before = os.umask(0o027)
    try:
        save_tensors(tensors, tmp_path / "out" / "ours")
    finally:
        os.umask(before)
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "theirs", {"format": "pt"}
    )
    assert (tmp_path / "out" / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert stat.S_IMODE((tmp_path / "out" / "ours").stat().st_mode) == 0o640
    with limited_files(100), pytest.raises(CheckpointError, match="ours cannot be written .File too large"):
        save_tensors(tensors, tmp_path / "out" / "ours")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ours"]


@contextlib.contextmanager
def limited_files(most: int):
    """Lets no file grow beyond `most` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content_with(**change) -> bytes:
    """A file of one tensor of 4 floats whose header is changed."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}
    header = json.dumps({"a": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header is truncated"),
        (b"\xff" * 40, "header is truncated"),
        ((8).to_bytes(8, "little") + b"notjson!", "Expecting value"),
        (content_with(shape=[5]), "does not agree"),
        (content_with(shape=[-4]), "does not agree"),
        (content_with(data_offsets=[16, 32]), "need"),
        (content_with(dtype="OBJECT"), "dtype OBJECT is unknown"),
        (content_with()[:-1], "need"),
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(tmp_path, content, said):
    with pytest.raises(CheckpointError, match=f"bad is not a readable safetensors file .*{said}"):
        opened(tmp_path / "bad", content)


def test_elements_beyond_a_tensor_are_refused(tmp_path):
    file = opened(tmp_path / "a", content_with())
    for start, numel in ((1, 4), (-1, 2), (5, 0)):
        with pytest.raises(CheckpointError, match=r"'a' has 4 elements, but .* were requested"):
            file.read("a", start, numel)


def test_a_file_that_shrinks_is_noticed(tmp_path):
    file = opened(tmp_path / "a", content_with())
    with (tmp_path / "a").open("r+b") as other:
        other.truncate(len(content_with()) - 8)
    with pytest.raises(CheckpointError, match="ends within 'a'"):
        file.read("a")


def test_writing_is_a_stream():
    """Nothing but `write` is asked of the target."""
    target = io.BytesIO()
    write_tensors(target, {"a": torch.ones(2)}, {})
    assert target.getvalue().endswith(torch.ones(2).numpy().tobytes())
