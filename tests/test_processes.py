"""What is known of processes of this machine, and calls that are given up."""

import os
import subprocess
import sys
import time

import pytest

from flava_ds.processes import machine, started, state_of, within


def test_what_takes_too_long_is_given_up():
    assert within(5, os.getpid) == os.getpid()
    assert within(5, lambda: None) is None
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(SystemExit):
        within(5, lambda: sys.exit(3))


def test_a_process_is_told_from_its_zombie_and_from_none():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = started(process.pid)
    assert began >= started(os.getpid()) and state_of(process.pid) in ("R", "S", "D")
    process.kill()
    while state_of(process.pid) != "Z":
        time.sleep(0.01)
    assert started(process.pid) is None
    process.wait()
    process.stdin.close()
    assert started(process.pid) is None and state_of(process.pid) == ""


@pytest.mark.parametrize("pid", [None, "7x", [], 0])
def test_no_process_has_such_a_number(pid):
    """A lock says what somebody has written there."""
    assert started(pid) is None and state_of(pid) == ""


def test_processes_of_a_machine_agree_on_its_name():
    code = "from flava_ds.processes import machine; print(machine())"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        ).stdout.strip()
        == machine()
    )


def test_no_file_of_a_run_gets_the_number_of_a_standard_stream_that_was_closed(tmp_path):
    code = (
        "import os, subprocess; from flava_ds.processes import complete_streams; complete_streams(); "
        "file = open('file', 'w'); os.system('echo of a child; echo of a child >&2'); print('of its own'); "
        "file.write(str(file.fileno()))"
    )
    line = f"exec '{sys.executable}' -c \"{code}\" <&- >&- 2>&-"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert int((tmp_path / "file").read_text()) > 2
