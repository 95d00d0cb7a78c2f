"""Hosts that see a shared folder late, as NFS shows it for up to a minute: sshfs, which caches alike."""

import re
from collections.abc import Iterator

import pytest
from pretend_hosts import Host, missing, shared_by_sshfs, two_hosts
from two_host_runs import curve, train_on_hosts

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

LATE_S = 600


@pytest.fixture
def hosts(tmp_path) -> Iterator[list[Host]]:
    """Two hosts, with what is needed to share a folder."""
    if reason := missing("pdsh=pdsh", "sshfs=sshfs"):
        pytest.skip(reason)
    (tmp_path / "net").mkdir()
    with two_hosts(tmp_path / "net") as hosts:
        yield hosts


def overrides(steps: int) -> list[str]:
    """Returns the options of a run that was at first to be shorter, and keeps all checkpoints."""
    words = f"--training.total-steps {steps} --schedule.warmup-steps 2 --checkpoint.every-steps 0"
    return [*words.split(), "--checkpoint.keep-last", "9", "--logging.no-tensorboard"]


def test_a_run_goes_on_from_its_latest_checkpoint_on_a_host_that_has_not_seen_it_yet(hosts, tmp_path):
    """That what goes on is the same run, bit for bit, is proven where starts are cheaper."""
    server, folder = tmp_path / "server", tmp_path / "folder"
    for path in (server, folder):
        path.mkdir()
    shared_by_sshfs(hosts, server, folder, LATE_S)
    first, other = hosts
    runs = {4: [first, other], 8: [first], 12: [other, first]}
    continued = []
    for steps, there in runs.items():
        _, done = train_on_hosts(folder, there, "pdsh", "late", overrides(steps))
        continued += re.findall(r"continuing from \S+step_(\d+)", done.stdout + done.stderr)
        seen = other.run("ls", "runs/late/checkpoints", folder=folder).stdout.split()
        if steps == 8:
            assert seen == ["latest", "step_00000004"], "what the test is about"
    assert list(map(int, continued)) == [4, 8]
    assert [line["step"] for line in curve(server, "late")] == list(range(12))
    kept = [path.name for path in (server / "runs/late/checkpoints").iterdir()]
    assert sorted(kept) == ["latest", *(f"step_{steps:08d}" for steps in runs)]
