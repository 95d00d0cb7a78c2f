"""Processes of tests that die."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from import_graph import ROOT

CRASHES = {"test_b.py": (1, 3), "test_d.py": (0,), "test_e.py": (4,)}
"""Tests that kill their process, of five in each of six files."""


def test_a_process_that_dies_fails_its_test_and_no_other_is_lost(tmp_path):
    for name in (f"test_{letter}.py" for letter in "abcdef"):
        bodies = ["os.kill(os.getpid(), 9)" if at in CRASHES.get(name, ()) else "pass" for at in range(5)]
        tests = [f"def test_{at}():\n    {body}\n" for at, body in enumerate(bodies)]
        (tmp_path / name).write_text("import os\n" + "".join(tests))
    plain = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "tests")}
    options = ["-p", "conftest", "-p", "no:cacheprovider", "--color=no"]
    together = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *together, "."],
        cwd=tmp_path,
        env=plain,  # without what an earlier test or its library has set for this process
        capture_output=True,
        text=True,
        timeout=300,
    )
    died = {f"{name}::test_{at}" for name, places in CRASHES.items() for at in places}
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")}
    assert failed == died, done.stdout + done.stderr
    assert "4 failed, 26 passed" in done.stdout.splitlines()[-1], done.stdout


class Node:
    """What a scheduler needs of a process; `given` are the tests that it has got."""

    gateway = SimpleNamespace(id="gw5")
    shutting_down = False

    def __init__(self, died: bool = False) -> None:
        self.given: list[int] = []
        self.died = died

    def send_runtest_some(self, indices: list[int]) -> None:
        """Takes tests."""
        if self.died:
            raise OSError("cannot send (already closed?)")
        self.given += indices

    def shutdown(self) -> None:
        """Is not called here: there is a file left."""
        raise AssertionError


def test_a_process_that_is_still_collecting_gets_nothing():
    """Two may have died at the same time; which replacement is ready first is chance."""
    pytest.importorskip("xdist")
    from crashed_workers import SurvivingCrashes

    scheduler, node = SurvivingCrashes(SimpleNamespace(getvalue=lambda name: ["popen"])), Node()
    scheduler.add_node(node)
    scheduler.workqueue["test_a.py"] = {"test_a.py::test_0": False, "test_a.py::test_1": False}
    scheduler._reschedule(node)
    assert node.given == [] and scheduler.workqueue
    scheduler.registered_collections[node] = ["test_a.py::test_0", "test_a.py::test_1"]
    scheduler._reschedule(node)
    assert node.given == [0, 1] and not scheduler.workqueue


def test_a_file_for_a_process_that_has_just_died_goes_to_another():
    """It died in its first file, of which one test has been reported; the second was on its way."""
    pytest.importorskip("xdist")
    from crashed_workers import SurvivingCrashes

    scheduler, dead, other = (
        SurvivingCrashes(SimpleNamespace(getvalue=lambda name: ["popen"])),
        Node(True),
        Node(),
    )
    tests = [f"test_{file}.py::test_{at}" for file in "ab" for at in range(3)]
    for node in (dead, other):
        scheduler.add_node(node)
        scheduler.registered_collections[node] = tests
    scheduler.assigned_work[dead]["test_a.py"] = dict(zip(tests[:3], (True, False, False), strict=True))
    scheduler.workqueue["test_b.py"] = dict.fromkeys(tests[3:], False)
    scheduler._reschedule(dead)
    assert not scheduler.workqueue and other.given == []
    assert scheduler.remove_node(dead) == tests[1]
    scheduler.mark_test_complete(other, 2)
    assert other.given == [2, 3, 4, 5] and not scheduler.workqueue
