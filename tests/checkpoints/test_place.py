"""One folder, the same on a disk, in fsspec's memory and in S3."""

import fsspec
import pytest
from s3_server import s3_bucket

from flava_ds.checkpoints.place import Place
from flava_ds.errors import CheckpointError


@pytest.fixture(params=["disk", "file url", "memory", "s3"])
def place(request, tmp_path):
    """A folder that does not exist yet."""
    if request.param == "memory":
        yield Place("memory://bucket/folder")
        fsspec.filesystem("memory").store.clear()
    elif request.param == "s3":
        with s3_bucket() as (url, _):
            yield Place(f"{url}/folder")
    else:
        yield Place(tmp_path / "folder") if request.param == "disk" else Place(f"file://{tmp_path}/folder")


def test_looking_again_leaves_nothing_behind(place):
    place.look_again()
    assert place.names() == []
    place.write("a", "text")
    folders = [folder for folder in (place.local, place.parent.local) if folder is not None]
    before = [folder.stat().st_mtime_ns for folder in folders]
    place.look_again()
    assert place.names() == ["a"] and place.parent.names() in (["folder"], ["folder", "store"])
    assert all(folder.stat().st_mtime_ns > was for folder, was in zip(folders, before, strict=True))


def test_files_come_and_go(place):
    assert place.names() == [] and not place.has("a")
    with pytest.raises(FileNotFoundError):
        place.read("a")
    with pytest.raises(CheckpointError, match="folder/a"):
        place.open("a")
    place.try_writing()
    assert place.names() == []
    place.write("a", "text")
    with (place / "sub").create("b") as file:
        file.write(b"01234")
        file.write(memoryview(b"56789"))
    assert place.names() == ["a", "sub"] and place.has("a") and not place.has("sub")
    assert place.read("a") == b"text"
    reading = (place / "sub").open("b")
    assert reading.size == 10 and reading.pread(4, 3) == b"3456" and reading.pread(4, 8) == b"89"
    place.write("a", "other")
    assert place.read("a") == b"other"
    place.remove("sub")
    place.remove("a")
    assert place.names() == []


def test_names_are_those_of_paths():
    for where in ("/runs/one/checkpoints", "s3://bucket/one/checkpoints"):
        place = Place(where)
        assert (place.name, str(place / "step_1"), str(place.parent)) == (
            "checkpoints",
            f"{where}/step_1",
            where.rsplit("/", 1)[0],
        )
        assert place == Place(f"{where}/") and place != place.parent
    assert Place("file:///runs/one").local.as_posix() == "/runs/one" and Place("s3://bucket").local is None


def test_an_empty_path_is_the_working_directory_and_not_the_root():
    assert (
        str(Place("") / "run") == "run"
        and str(Place("file://") / "run") == "run"
        and str(Place("/") / "run") == "/run"
    )


def test_a_protocol_without_its_package_is_named():
    with pytest.raises(CheckpointError, match="protocol 'nosuch' cannot be used"):
        Place("nosuch://bucket").names()


def test_its_text_leaves_out_a_password():
    place = Place("sftp://ada:secret@host/runs") / "one"
    assert place.url == "sftp://ada:secret@host/runs/one" and str(place) == "sftp://ada@host/runs/one"


def test_a_file_that_cannot_be_read_is_called_what_it_is(tmp_path):
    (tmp_path / "weights_00000.safetensors").mkdir()
    with pytest.raises(CheckpointError) as raised:
        Place(tmp_path).open("weights_00000.safetensors")
    said = str(raised.value)
    assert said.startswith(f"{tmp_path}/weights_00000.safetensors cannot be read: ")
    assert said.endswith("; mend that, or use another checkpoint") and "shard" not in said
