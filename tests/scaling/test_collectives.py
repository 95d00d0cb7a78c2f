"""Times of collectives against rows of nccl-tests that were not put through, and against limits."""

import math

import pytest

from flava_ds.errors import ConfigError
from flava_ds.scaling.collectives import gather_of_counts, seconds
from flava_ds.scaling.hardware import cluster

MIB = 2**20


@pytest.mark.parametrize(
    ("gpu", "gpus", "mib", "busbw"),
    [
        ("a100", 8, 4, 72),
        ("a100", 8, 64, 172),
        ("a100", 8, 1024, 229),
        ("h100", 64, 64, 189),
        ("h100", 128, 256, 265),
        ("h100", 256, 1024, 314),
        ("h100", 4096, 64, 112),
    ],
)
def test_all_reduce_is_near_published_bandwidth(gpu, gpus, mib, busbw):
    """GB/s of nccl-tests on A100, and of arXiv 2411.13055 on H100; digitised, so no closer than 40 %."""
    machines = cluster(gpu, gpus, None, None)
    moved = mib * MIB * 2 * (gpus - 1) / gpus
    assert moved / seconds("all_reduce", mib * MIB, machines) / 1e9 == pytest.approx(busbw, rel=0.4)


def test_small_messages_are_latency():
    assert seconds("all_reduce", 32 * 1024, cluster("a100", 8, None, None)) == pytest.approx(44e-6, rel=0.2)


def test_limits():
    one = cluster("h100", 1, None, None)
    assert seconds("all_reduce", 1e9, one) == 0 and gather_of_counts(1, 50) == 0
    assert [gather_of_counts(ranks, 50) for ranks in (2, 5, 512)] == pytest.approx([50e-6, 150e-6, 450e-6])
    fast, slow = cluster("h100", 64, 8, "ib-400x8"), cluster("h100", 64, 8, "ethernet-100")
    assert seconds("all_reduce", 5.42e8, slow) > 15 * seconds("all_reduce", 5.42e8, fast)
    assert seconds("all_reduce", 5.42e8, slow) == pytest.approx(2 * 5.42e8 / 10e9, rel=0.2)
    sizes = [seconds("all_gather", 2.0**k, fast) for k in range(10, 34)]
    assert sizes == sorted(sizes) and not any(map(math.isnan, sizes))


def test_machines_are_full_unless_their_gpus_are_counted():
    assert (cluster("h100", None, 64, None).gpus, cluster("h100", None, None, None).gpus) == (512, 8)
    assert cluster("h100", 64, 16, None).nodes == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("h10", 8, None, None), "--gpu 'h10' is unknown; did you mean 'h100'?"),
        (("h100", 8, None, "ib-400x9"), "--network 'ib-400x9' is unknown; did you mean 'ib-400x8'?"),
        (("h100", 0, None, None), "--gpus 0: use at least 1"),
        (("h100", None, 0, None), "--nodes 0: use at least 1"),
        (("h100", 4, 8, None), "--gpus 4 do not divide by --nodes 8"),
        (("h100", 9, 2, None), "--gpus 9 do not divide by --nodes 2"),
    ],
)
def test_unknown_hardware_is_one_line(words, message):
    with pytest.raises(ConfigError) as raised:
        cluster(*words)
    assert message in str(raised.value)
