"""Files that are replaced as a whole: nothing in between is ever seen, and a failure leaves the old file and
nothing else.
"""

import errno
import multiprocessing
import os
import resource
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from flava_ds.storage import atomic
from flava_ds.storage.atomic import PARTIAL, replacing, write_json, write_whole

ROUNDS = 60
CONTENTS = [letter * 400_000 for letter in ("a", "b")]


def keep_writing(path, text):
    for _ in range(ROUNDS):
        write_whole(path, text)


def test_text_bytes_and_what_a_library_writes(tmp_path):
    write_whole(tmp_path / "new" / "text", "Grüße\n")
    write_whole(tmp_path / "bytes", b"\x00\xff", durable=True)
    with replacing(tmp_path / "tensors") as temporary:
        save_file({"x": torch.arange(3)}, temporary)
    assert (tmp_path / "new" / "text").read_bytes() == "Grüße\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert load_file(tmp_path / "tensors")["x"].tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "new", "tensors"]


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "indented", {"a": [1]})
    write_json(tmp_path / "plain", {"a": [1]}, indent=None)
    assert (tmp_path / "indented").read_bytes() == b'{\n  "a": [\n    1\n  ]\n}\n'
    assert (tmp_path / "plain").read_bytes() == b'{"a": [1]}\n'


def test_two_processes_that_write_one_file_show_no_mixture(tmp_path):
    path = tmp_path / "shared"
    write_whole(path, CONTENTS[0])
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=keep_writing, args=(path, text)) for text in CONTENTS]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in CONTENTS
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_leftovers(tmp_path, error, durable, alone):
    path = tmp_path / "kept"
    write_whole(path, "old")
    with pytest.raises(type(error)), replacing(path, durable=durable, alone=alone) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_second_writer_that_must_be_alone_is_refused(tmp_path):
    path = tmp_path / "large"
    with replacing(path, alone=True) as temporary:
        temporary.write_text("first")
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            with replacing(path, alone=True):
                pass
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    with replacing(path, alone=True) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second"


def test_a_library_that_writes_nothing_is_an_error(tmp_path):
    write_whole(tmp_path / "kept", "old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_take_the_name_is_removed(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError) as raised:
        write_whole(tmp_path / "taken", "text")
    assert raised.value.filename == str(tmp_path / "taken"), "not its temporary name, which nobody knows"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_lone_writer_that_cannot_write_names_the_file(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "hold", refuse)
    with pytest.raises(PermissionError) as raised, replacing(tmp_path / "table.csv", alone=True):
        pass
    assert raised.value.filename == str(tmp_path / "table.csv")


def test_the_pipe_of_a_link_is_written_to_and_both_stay(tmp_path):
    """As behind /dev/stdout."""
    os.mkfifo(pipe := tmp_path / "pipe")
    (link := tmp_path / "stdout").symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(link, {"a": 1}, indent=None)
        assert os.read(reader, 100) == b'{"a": 1}\n'
    finally:
        os.close(reader)
    assert pipe.is_fifo() and link.is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_file_that_has_no_room_is_named(tmp_path):
    """The system names none when it refuses to write to a file that is open."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_whole(tmp_path / "plan.json", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "plan.json") and not list(tmp_path.iterdir())


def test_a_kill_leaves_one_recognisable_file_which_a_lone_writer_replaces(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from flava_ds.storage.atomic import replacing\n"
        "with replacing(Path(sys.argv[1]), alone=True) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "large"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == -9
    assert [left.name for left in tmp_path.iterdir()] == ["large" + PARTIAL]
    with replacing(path, alone=True) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_permissions_of_any_new_one_and_a_name_as_long_as_allowed(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / ("ü" * 127), "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / ("ü" * 127)).stat().st_mode) == 0o640
