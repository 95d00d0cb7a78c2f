"""Processes of tests that die."""

import os
import subprocess
import sys

from import_graph import ROOT

CRASHES = {"test_b.py": (1, 3), "test_d.py": (0,), "test_e.py": (4,)}
"""Tests that kill their process, of five in each of six files."""


def test_a_process_that_dies_fails_its_test_and_no_other_is_lost(tmp_path):
    for name in (f"test_{letter}.py" for letter in "abcdef"):
        bodies = ["os.kill(os.getpid(), 9)" if at in CRASHES.get(name, ()) else "pass" for at in range(5)]
        tests = [f"def test_{at}():\n    {body}\n" for at, body in enumerate(bodies)]
        (tmp_path / name).write_text("import os\n" + "".join(tests))
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    together = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", *together, "."],
        cwd=tmp_path,
        env=alone | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    died = {f"{name}::test_{at}" for name, places in CRASHES.items() for at in places}
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")} == died
    assert "4 failed, 26 passed" in done.stdout.splitlines()[-1], done.stdout
