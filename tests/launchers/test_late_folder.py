"""Hosts that see a shared folder late, as NFS shows it for up to a minute: sshfs, which caches alike."""

from collections.abc import Iterator

import pytest
from pretend_hosts import Host, missing, shared_by_sshfs, two_hosts
from two_host_runs import curve, train_on_hosts, train_on_one_host

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
    one, server, folder = (tmp_path / name for name in ("one", "server", "folder"))
    for path in (one, server, folder):
        path.mkdir()
    shared_by_sshfs(hosts, server, folder, LATE_S)
    first, other = hosts
    runs = {4: [first, other], 8: [first], 12: [other, first]}
    for steps, there in runs.items():
        train_on_one_host(one, "late", overrides(steps), ranks=len(there))
        train_on_hosts(folder, there, "pdsh", "late", overrides(steps))
        seen = other.run("ls", "runs/late/checkpoints", folder=folder).stdout.split()
        if steps == 8:
            assert seen == ["latest", "step_00000004"], "what the test is about"
    assert curve(server, "late") == curve(one, "late")
    kept = [path.name for path in (server / "runs/late/checkpoints").iterdir()]
    assert sorted(kept) == ["latest", *(f"step_{steps:08d}" for steps in runs)]
