"""Trains on two simulated hosts and on one, and records the logs for docs/multi_node.md.

    python benchmarks/two_hosts.py && make docs

The hosts are network namespaces of this machine with an sshd each (tests/launchers/pretend_hosts.py). This
needs root and Debian's iproute2, openssh-server, pdsh and openmpi-bin. Writes
benchmarks/results/two_hosts.json.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from scripts import parser_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "launchers"))
RESULTS = ROOT / "benchmarks" / "results" / "two_hosts.json"
TERMINAL = "\x1b[K"
"""Starts a line that replaces the previous one on a terminal."""


def own_words(printed: str) -> list[str]:
    """Returns what the ranks printed and that they ended.

    The launcher's commands are left out: they name folders of this machine.
    """
    # mpirun gives ranks a terminal
    lines = (line.removeprefix(TERMINAL) for line in printed.replace("\r", "\n").splitlines())
    return [line for line in lines if line and ("[INFO]" not in line or "exits successfully" in line)]


def main() -> int:
    """Runs everything. Returns 1 if a curve differs."""
    parser_of(__doc__).parse_args()
    from pretend_hosts import ADDRESSES, missing, two_hosts
    from two_host_runs import LAUNCHERS, ONE_HOST, OVERRIDES, STEPS, run_on_two_hosts, train_on_one_host

    if reason := missing(*LAUNCHERS.values()):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    found = {
        "hosts": ADDRESSES,
        "steps": STEPS,
        "torch": metadata.version("torch"),
        "deepspeed": metadata.version("deepspeed"),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        expected = train_on_one_host(folder, ONE_HOST, OVERRIDES)
        (folder / "net").mkdir()
        with two_hosts(folder / "net") as hosts:
            for launcher in LAUNCHERS:
                run = run_on_two_hosts(folder, hosts, launcher)
                row = {
                    "launcher": launcher,
                    "command": f"{' '.join(run.command[:3])} {shlex.join(run.command[3:])}",
                    "equal": run.curve == expected,
                }
                found["rows"].append(
                    row
                    | {"sent": run.sent, "gradient_bytes": run.gradient_bytes, "log": own_words(run.printed)}
                )
        os.chdir(ROOT)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["equal"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
