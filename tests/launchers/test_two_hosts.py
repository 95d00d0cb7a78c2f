"""A run on two hosts is the run on one: the deepspeed launcher with a hostfile, over ssh, with gloo over the
link between them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pretend_hosts import Host, missing, two_hosts
from two_host_runs import LAUNCHERS, ONE_HOST, OVERRIDES, STEPS, Curve, run_on_two_hosts, train_on_one_host

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that the hosts share."""
    if reason := missing():
        pytest.skip(reason)
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def expected(folder) -> Curve:
    """The curve of two ranks on one host."""
    return train_on_one_host(folder, ONE_HOST, OVERRIDES)


@pytest.fixture(scope="module")
def hosts(folder) -> Iterator[list[Host]]:
    """Two hosts, for all tests of this module."""
    (folder / "net").mkdir()
    with two_hosts(folder / "net") as hosts:
        yield hosts


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_hosts_have_the_curve_of_one(folder, expected, hosts, launcher, monkeypatch):
    if reason := missing(LAUNCHERS[launcher]):
        pytest.skip(reason)
    monkeypatch.chdir(folder)
    found = run_on_two_hosts(folder, hosts, launcher)
    assert len(expected) == STEPS and {"loss/global_contrastive", "loss/itm"} <= {
        key for line in expected for key in line
    }
    assert found.curve == expected, "the same arithmetic in the same order, so the same bits"
    assert found.gradient_bytes > 0
    assert min(found.sent) > STEPS * found.gradient_bytes, (
        "gradients have to cross the link in both directions at every step"
    )
