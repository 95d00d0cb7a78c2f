"""benchmarks/forecast.py and its block: a profile's kernels find their rows, beside the forecast."""

import gzip
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]

import forecast as benchmark  # noqa: E402
from blocks.forecast import forecast as block  # noqa: E402

KERNELS = [
    ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NTT", 384, benchmark.PRODUCTS),
    ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>", 128, benchmark.PRODUCTS),
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nchw", 128, benchmark.CODEBOOK),
    ("_forward", 256, benchmark.NORMS),
    ("_forward", 128, "linear_gelu, without its products"),
    ("attention_backward", 128, "varlen_attention"),
    ("_softmax", 256, "linear_cross_entropy, without its products"),
    ("void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctor<float>>", 512, benchmark.OPTIMIZER),
    ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgs)", 544, benchmark.COMMUNICATED),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", 512, benchmark.TORCH),
]  # fmt: skip


def events():
    """Every kernel for 100 us one after another, a relu of the codebook, and one that overlaps."""
    found = [
        {
            "cat": "kernel",
            "name": name,
            "tid": 7,
            "ts": 200.0 * i,
            "dur": 100.0,
            "args": {"block": [size, 1, 1]},
        }
        for i, (name, size, _) in enumerate(KERNELS)
    ]
    relu = found[-1] | {"ts": 5000.0, "name": "void at::native::vectorized_elementwise_kernel<4>"}
    found += [relu, relu | {"tid": 8, "ts": 5050.0}]
    found.append(
        {"cat": "gpu_user_annotation", "name": "image codebook", "tid": 7, "ts": 4990.0, "dur": 200.0}
    )
    return [*found, {"cat": "cpu_op", "name": "aten::mm", "tid": 1, "ts": 0.0, "dur": 1e6}, {"ph": "M"}]


def test_kernels_find_their_rows():
    spent, busy = benchmark.by_row(events())
    wanted = dict.fromkeys((row for *_, row in KERNELS), 0.0)
    for *_, row in KERNELS:
        wanted[row] += 0.1
    wanted[benchmark.CODEBOOK] += 0.1  # launched in its range
    wanted[benchmark.TORCH] += 0.1  # at the same time on another stream
    assert spent == pytest.approx(wanted)
    assert busy == pytest.approx(0.1 * len(KERNELS) + 0.15), "what overlaps counts once"


def test_what_was_measured_stands_beside_the_forecast(tmp_path):
    (profile := tmp_path / "pairs-64" / "train_steps" / "profile").mkdir(parents=True)
    with gzip.open(profile / "trace_steps_20-21_rank_0.json.gz", "wt") as file:
        json.dump({"traceEvents": events()}, file)
    pair = {"seconds_per_step": 0.060, "flops_per_second": 3e14}
    summary = {
        "kinds": {"pair": pair},
        "hardware": {"device": "NVIDIA H100 80GB HBM3"},
        "git": {"commit": "0123456789"},
    }
    (tmp_path / "pairs-64" / "train_steps.json").write_text(json.dumps(summary))
    assert benchmark.measured(tmp_path / "pairs-128", 128) is None
    run = benchmark.measured(tmp_path / "pairs-64", 64)
    assert run["ms"][benchmark.PRODUCTS] == pytest.approx(0.1), "two of 0.1 ms in two steps"
    assert run["ms"][benchmark.IDLE] == pytest.approx(60 - 1.15 / 2, abs=1e-3)

    results = json.loads(benchmark.RESULT.read_text(encoding="utf-8")) | {"measured": [run]}
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "forecast.json").write_text(json.dumps(results))
    h100, others = block(tmp_path).split("One H200")
    rows = {line.split(" | ")[0]: line.split(" | ")[-1] for line in h100.splitlines() if " | " in line}
    assert rows["| matrix products"] == "**0.1** |", "outside of its range"
    assert rows["| **step**"] == "60.0 |" and rows["| MFU, %"] == "30.3 |"
    assert "measured" not in others and "NVIDIA H100 80GB HBM3 at 0123456" in h100


def test_without_a_measurement_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["forecast.py", "--measured", str(tmp_path)])
    assert benchmark.main() == 2 and "has no finished pairs-N" in capsys.readouterr().err
