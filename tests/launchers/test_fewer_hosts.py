"""NODES=1:2: one of two hosts is gone in mid-run, and torchrun goes on with the other one alone, from the
latest checkpoint.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pretend_hosts import LINK, missing, two_hosts
from two_host_runs import ENVIRONMENT, ROOT, TIMEOUT_S, Curve, curve, train_on_one_host

from flava_ds.demo.dataset import unpack
from flava_ds.recipes.demo import DATA

STEPS, KILLED_AFTER = 24, 11
OVERRIDES = [
    "--training.total-steps",
    str(STEPS),
    "--schedule.warmup-steps",
    "2",
    "--checkpoint.every-steps",
    "4",
    "--logging.no-tensorboard",
]
OVERRIDES += ["--engine.communication-timeout-s", "15", "--optimizer.eps", "1e-3"]
"""A large eps, since key biases have rounding noise for a gradient, which a small one turns into whole steps.
"""

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def logged(folder: Path) -> Curve:
    """Returns the curve so far."""
    return curve(folder, "shrinks") if (folder / "runs" / "shrinks" / "log.jsonl").is_file() else []


def test_a_run_goes_on_without_a_host_that_is_gone(tmp_path, monkeypatch):
    if reason := missing():
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    unpack(tmp_path / DATA)
    expected = train_on_one_host(tmp_path, "whole", OVERRIDES)
    (tmp_path / "net").mkdir()
    settings = {"NODES": "1:2", "RANKS": "1", "HEAD": "host0", "GLOO_SOCKET_IFNAME": LINK, "RESTARTS": "1"}
    command = [
        "bash",
        str(ROOT / "launchers" / "torchrun.sh"),
        "flava_debug",
        "--name",
        "shrinks",
        *OVERRIDES,
    ]
    with two_hosts(tmp_path / "net") as hosts:
        said = [(tmp_path / f"said_{host.name}").open("w") for host in hosts]
        agents = [
            subprocess.Popen(host.command(*command), env={**ENVIRONMENT, **settings}, stdout=out, stderr=out)
            for host, out in zip(hosts, said, strict=True)
        ]
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not (found := logged(tmp_path)) or found[-1]["step"] < KILLED_AFTER:
                assert time.monotonic() < deadline and agents[0].poll() is None, (
                    tmp_path / "said_host0"
                ).read_text()[-3000:]
                time.sleep(0.05)
            # the link, and with it host0's address, would vanish with host1's network
            with open(f"/proc/{hosts[1].pid}/ns/net"):
                os.kill(hosts[1].pid, signal.SIGKILL)
                assert agents[0].wait(TIMEOUT_S) == 0, (tmp_path / "said_host0").read_text()[-5000:]
        finally:
            for agent in agents:
                agent.kill()
                agent.wait()
    words = (tmp_path / "said_host0").read_text()
    found = re.search(r"continuing from \S+step_(\d+) with ranks 2 -> 1", words)
    assert found and "rank 1 (host host1) ended without a word" in words, words[-5000:]
    shrunk = curve(tmp_path, "shrinks")
    assert [line["step"] for line in shrunk] == list(range(STEPS))
    resumed = int(found[1])
    assert KILLED_AFTER - 7 <= resumed < STEPS and shrunk[:resumed] == expected[:resumed], (
        "the same arithmetic on two hosts as on one"
    )
    for ours, theirs in zip(shrunk, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert {key: value for key, value in ours.items() if "loss" in key} == pytest.approx(
            {k: v for k, v in theirs.items() if "loss" in k}, rel=1e-5
        )
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
