"""Triton's interpreter still gets bf16 wrong, and the repair makes it exact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("bf16_probe.py")


def probe(*arguments: str) -> dict[str, float]:
    """Runs the probe in a process of its own: this one is repaired already."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROBE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.triton
def test_upstream_still_needs_the_repair():
    found = probe()
    wrong = [name for name in ("rounding", "arithmetic", "dot") if found[name] > 0]
    assert wrong, (
        f"triton {found['triton']} interprets bf16 correctly: remove interpreter_bf16 where no older "
        "version is tested"
    )


@pytest.mark.triton
def test_the_repaired_interpreter_is_exact():
    found = probe("repair")
    assert {name: found[name] for name in ("rounding", "arithmetic", "dot")} == {
        "rounding": 0,
        "arithmetic": 0,
        "dot": 0,
    }
