"""Commands behind `| head`: they end without a word when nobody reads them any more."""

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
