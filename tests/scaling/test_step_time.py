"""Time on the device by kernel, and what an operator of ours costs the host."""

import json
from pathlib import Path

import pytest

from flava_ds.errors import ConfigError
from flava_ds.scaling.assumptions import MIDDLE, RANGES
from flava_ds.scaling.hardware import GPUS, at_precision, cluster
from flava_ds.scaling.step_time import (
    PRODUCTS,
    TORCH,
    expected_largest,
    exposed_reduction,
    operator_seconds,
)
from flava_ds.scaling.work import Amount, Operator

H100 = GPUS["h100"]
HOST_TIME = Path(__file__).parents[2] / "benchmarks" / "results" / "host_time.json"
HOST_STEP = HOST_TIME.with_name("host_step.json")


def operator(name, custom, flops=0.0, moved=0.0, product=None):
    edges = [Amount(edge) for edge in product] if product else [None] * 3
    return Operator(name, "forward", custom, 2, Amount(flops), Amount(moved), *edges)


def test_a_fused_operator_takes_its_products_and_its_kernel():
    rows, columns, inner = 128 * 132, 256, 768
    flops, moved = 2.0 * rows * columns * inner, 1e9
    by_flops = 2 * flops / (H100.flops * H100.best_gemm * MIDDLE.product_share)
    by_memory = 2 * moved / (H100.memory_bandwidth * MIDDLE.bandwidth_share)
    fused = operator("linear_gelu_backward", True, flops, moved, (rows, columns, inner))
    assert operator_seconds(fused, 1, 1, H100, MIDDLE) == pytest.approx(
        {PRODUCTS: by_flops, "linear_gelu": by_memory}
    )
    plain = operator("mm", False, flops, moved, (rows, columns, inner))
    assert operator_seconds(plain, 1, 1, H100, MIDDLE) == {PRODUCTS: max(by_flops, by_memory)}
    assert operator_seconds(operator("sum", False, 0.0, moved), 1, 1, H100, MIDDLE) == {TORCH: by_memory}
    attention = operator("varlen_attention", True, 1e12, 1.0)
    assert operator_seconds(attention, 1, 1, H100, MIDDLE) == pytest.approx(
        {"varlen_attention": 2e12 / (H100.flops * MIDDLE.attention_share)}
    )


def test_products_with_the_samples_of_all_ranks_have_their_columns():
    """Measured of 64 samples, which were compared with themselves: 3 products of 64 x 64 x 768."""
    flops, edges = Amount(pair=6 * 768), (Amount(each=1), Amount(each=3), Amount(768))
    pooled = Operator("info_nce_backward", "backward", True, 1, flops, Amount(), *edges)
    found = operator_seconds(pooled, 1, 8192, H100, MIDDLE)[PRODUCTS]
    alike = operator("mm", False, 6.0 * 768 * 8192, 0.0, (1, 3 * 8192, 768))
    assert found == pytest.approx(operator_seconds(alike, 1, 1, H100, MIDDLE)[PRODUCTS] / 2)
    inner = Operator("mm", "backward", False, 2, Amount(pair=2 * 768), Amount(), Amount(each=1), Amount(768),
                     Amount(each=1))  # fmt: skip
    alike = operator("mm", False, 2.0 * 64 * 768 * 4096, 0.0, (64, 768, 4096))
    assert operator_seconds(inner, 64, 4096, H100, MIDDLE) == operator_seconds(alike, 1, 1, H100, MIDDLE)


def test_convolutions_in_fp32_are_rounded_to_tf32():
    a100 = at_precision(cluster("a100", 8, None, None), "fp32").gpu
    calls = {name: operator(name, False, 1e12, 0.0, (108 * 256, 1280, 768)) for name in ("convolution", "mm")}
    times = {name: operator_seconds(call, 1, 1, a100, MIDDLE) for name, call in calls.items()}
    assert times["mm"][PRODUCTS] == pytest.approx(times["convolution"][PRODUCTS] * 156 / 19.5)


def test_a_precision_has_its_own_peak():
    machines = cluster("a100", 8, None, None)
    assert at_precision(machines, "bf16") is at_precision(machines, "fp16") is machines
    assert at_precision(machines, "fp32").gpu.flops == 19.5e12
    older = cluster("v100", 8, None, None)
    assert at_precision(older, "fp16").gpu.flops == 125e12
    with pytest.raises(ConfigError, match="v100 has no tensor cores for training.precision bf16; add --tr"):
        at_precision(older, "bf16")


def test_the_host_s_time_is_the_measured_one_and_launches():
    """The ends are for launches of 30, 15 and 8 us; what is around them was measured without launches."""
    found = json.loads(HOST_TIME.read_text(encoding="utf-8"))
    measured, counts = found["ways"]["ours"], found["steps"]["pair"]
    calls = {name: counts.get(name, counts.get(f"{name}_forward")) for name in measured}
    operators = 2 * sum(calls.values())  # each with its backward
    outside = sum(
        count * (measured[name]["microseconds"] + measured[name]["launching_microseconds"])
        for name, count in calls.items()
    )
    launches = sum(count * measured[name]["launches"] for name, count in calls.items())
    forecast = [(outside + launches * each) / operators for each in (30, 15, 8)]
    assumed = RANGES["custom_us"]
    assert [assumed.worse, assumed.middle, assumed.better] == pytest.approx(forecast, rel=0.15)


def test_the_host_s_time_beside_operators_is_that_of_whole_steps():
    """Brought to the machine of host_time.json by the ratio of two blocks. The worse end is that of blocks
    that run their layers, as with ZeRO-3 or post-norm, and has the arithmetic of the narrowest step; the
    better one is for a core twice as fast.
    """
    alone, step = (json.loads(file.read_text(encoding="utf-8")) for file in (HOST_TIME, HOST_STEP))
    once, counts = step["operators"], step["counts"]
    by_block = once["block_us"] / alone["blocks"]["eager"]["microseconds"]
    own = alone["ways"]["ours"]
    by_operators = once["ours_ms"] / sum(
        counts.get(name, counts.get(f"{name}_forward"))
        * (own[name]["microseconds"] + own[name]["launching_microseconds"])
        / 1e3
        for name in own
    )
    whole, bound = (sum(found.values()) for found in (step["host"]["engine"], step["widths"][0]["layers"]))
    listed = once["ours_ms"] + once["plain_ms"]
    middle, worse = (
        1e3 * (ms - listed) / ratio / sum(counts.values())
        for ms, ratio in ((whole, by_block), (bound, by_operators))
    )
    assumed = RANGES["beside_us"]
    assert [assumed.worse, assumed.middle, assumed.better] == pytest.approx(
        [worse, middle, middle / 2], rel=0.15
    )


def test_the_expected_largest_of_some_normal_numbers():
    """Harter 1961; of two it is 1 / sqrt(pi)."""
    found = [expected_largest(number) for number in (1, 2, 8, 1000)]
    assert found == pytest.approx([0, 0.5642, 1.4236, 3.2414], abs=2e-3)


@pytest.mark.parametrize("payload", [1e6, 2e8, 5e8])
def test_a_reduction_that_is_all_exposed_hides_nothing(payload):
    """Rounding left -1e-18 s, which a plan shows as -0.00."""
    machine = cluster("a100-40", 4, None, None)
    exposed, hidden = exposed_reduction(payload, "all_reduce", 1e8, 0.1, machine, 0.8, overlap=False)
    assert exposed > 0 and f"{hidden:.2f}" == "0.00"
