"""launchers/slurm.sbatch and a sweep's job array, run by Slurm itself on two hosts.

test_slurm_requeue.py proves what the script does where no Slurm is installed; benchmarks/slurm.py also waits
for a time limit.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pretend_hosts import missing
from pretend_slurm import GPU_OPTIONS, PROGRAMS, Cluster, slurm
from slurm_runs import (
    CHECKPOINT_EVERY,
    INTERRUPTED_EVERY,
    INTERRUPTIONS,
    SCRIPT,
    SWEEP,
    array_of_runs,
    expected,
    interrupted,
    undisturbed,
)
from two_host_runs import Curve

STEPS = 150

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder that the hosts share."""
    if reason := missing(*PROGRAMS, ssh=False):
        pytest.skip(reason)
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def work(folder, monkeypatch) -> Path:
    """The working directory of all jobs."""
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Curve:
    """The curve of two ranks on one host."""
    return expected(folder, STEPS)


@pytest.fixture(scope="module")
def cluster(folder, tmp_path_factory) -> Iterator[Cluster]:
    """A cluster for all tests of this module."""
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_job_unpacks_the_demos_data_and_has_the_curve_of_one_host(work, cluster, request):
    run = undisturbed(cluster, STEPS)
    assert (work / "runs" / "demo_data").is_dir() and run.continued_from() == []
    one_host = request.getfixturevalue("uninterrupted")  # only now: it would have unpacked the data
    assert run.curve() == one_host, "the same arithmetic in the same order, so the same bits"


def test_run_interrupted_in_every_way_has_the_curve_of_an_uninterrupted_one(work, uninterrupted, cluster):
    run = interrupted(cluster, STEPS, *INTERRUPTIONS)
    steps = run.continued_from()
    assert len(steps) >= len(INTERRUPTIONS), run.said()[-3000:]
    # a lost host leaves the last regular checkpoint, a signal one more
    for number in range(1, len(INTERRUPTIONS) + 1):
        least = number * INTERRUPTED_EVERY - CHECKPOINT_EVERY
        assert any(least <= step < least + 2 * INTERRUPTED_EVERY for step in steps), steps
    assert run.curve() == uninterrupted


def test_a_sweeps_array_runs_every_run(work, cluster):
    states = array_of_runs(cluster)
    assert len(states) == SWEEP.count("1.0e-") and set(states.values()) == {"finished"}, states


def test_failure_is_told_and_not_requeued(work, cluster):
    number = cluster.submit(*GPU_OPTIONS, SCRIPT, "flava_debug", "--codebook-weights", "gone")
    cluster.wait_for(lambda: cluster.job(number)["JobState"] == "FAILED", "failed: a job without a codebook")
    said = (work / f"flava_ds-{number}.log").read_text()
    assert said.startswith("error: codebook_weights 'gone'"), said[-3000:]
    assert cluster.job(number)["Restarts"] == "0"
