"""A loader process of one rank dies or hangs: the run ends on all ranks, with one line that names it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

OVERRIDES = [
    *(
        "--ranks",
        "2",
        "--training.total-steps",
        "1000000",
        "--schedule.warmup-steps",
        "2",
        "--logging.no-tensorboard",
    ),
    *("--data.num-workers", "1", "--data.worker-timeout-s", "4", "--engine.communication-timeout-s", "300"),
]
START_S, END_S = 240, 120
"""Not measures of speed: a hang would last for ever."""

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def run(tmp_path, demo_data) -> Iterator[subprocess.Popen]:
    """A run on two ranks, each with a loader process, that has made its first step."""
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", *OVERRIDES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        log, end = tmp_path / "runs" / "flava_debug" / "log.jsonl", time.monotonic() + START_S
        while not (log.is_file() and len(log.read_text().splitlines()) > 1):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "out").read_text()[-3000:]
            time.sleep(0.1)
        yield process
    finally:
        for pid in parents():
            if session_of(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
        process.wait()


def parents() -> dict[int, tuple[int, str]]:
    """Returns the parent and the command line of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (
                parent,
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(),
            )
        except OSError:
            continue
    return found


def session_of(pid: int) -> int:
    """Returns the session of a process, 0 when it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def loader_processes(run: subprocess.Popen) -> dict[int, int]:
    """Returns the loader processes of a run with their ranks' processes: copies of a rank, with a rank for a
    parent.
    """
    known = {pid: entry for pid, entry in parents().items() if session_of(pid) == run.pid}
    return {
        pid: parent
        for pid, (parent, words) in known.items()
        if "--local_rank" in words and parent in known and known[parent][1] == words
    }


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "has sent no batch for 4 s")],
)
def test_the_run_ends_on_all_ranks_and_names_the_process(run, tmp_path, number, told):
    found = loader_processes(run)
    assert len(found) == len(set(found.values())) == 2
    victim = max(found)
    os.kill(victim, number)
    status = run.wait(timeout=END_S)
    said = (tmp_path / "out").read_text()
    (line,) = [line for line in said.splitlines() if "error:" in line.lower()]
    assert (
        status == 2
        and line.startswith("error: a loader process ")
        and f"number 0 of 1 (pid {victim}) {told}" in line
    ), said[-3000:]
    assert "Traceback" not in said
    end = time.monotonic() + END_S
    while (
        alive := {pid for pid in (*found, *found.values()) if session_of(pid) == run.pid}
    ) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive, "ranks and their loader processes have to be gone"
