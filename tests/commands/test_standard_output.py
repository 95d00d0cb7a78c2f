"""Commands behind `| head`, which end without a word when nobody reads them any more, and those whose
standard streams are closed, full, or of an encoding that lacks letters.
"""

import os
import signal
import subprocess
import sys

import pytest

from flava_ds import cli

GONE = 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("words", "status"),
    [(["config", "--reference"], GONE), (["config", "flava_debug"], GONE), (["--help"], 0)],
)
def test_a_command_whose_reader_is_gone_is_quiet(words, status):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flava_ds.cli", *words], stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode) == ("", status)


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capsys):
    """That of a process, or a connection: standard output is still read."""

    def broken(*_: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "show_config", broken)
    assert cli.main(["config", "flava_debug"]) == 1
    assert "error: BrokenPipeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("closed", "words", "status"),
    [("<&- >&-", "config flava_debug", 0), ("2>&- <&-", "config nothing", 2)],
)
def test_closed_standard_streams_keep_no_command_from_its_work(closed, words, status):
    line = f"exec '{sys.executable}' -m flava_ds.cli {words} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (status, "", "")


def test_a_full_standard_output_is_named():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "flava_ds.cli", "config", "flava_debug"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "error: standard output, or a file, cannot be written (No space left on device); make room\n"
    assert (done.stderr, done.returncode) == (said, 2)


def test_letters_that_the_encoding_of_standard_output_lacks_are_spelled_out(tmp_path):
    (tmp_path / "\u56fe.yaml").write_text("base: flava_debug\n", "utf-8")
    command = [sys.executable, "-m", "flava_ds.cli", "config", f"{tmp_path}/\u56fe.yaml", "--help"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0 and r"\u56fe" in done.stdout, done.stderr
