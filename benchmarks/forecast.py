"""Forecasts every part of a step of flava_base's pairs, and puts beside it what a GPU measured.

    python benchmarks/forecast.py && make docs
    python benchmarks/forecast.py --measured runs/gpu_suite/DEVICE && make docs

The forecasts are plans of `flava-ds plan flava_base` with micro-batches of 64, 128 and 256 pairs on one GPU
and on eight. `--measured` reads the folders pairs-64, pairs-128 and pairs-256 that benchmarks/gpu_suite.sh
writes, each with a log and a profile of whole steps, and adds them to those of other cards. All of it goes to
benchmarks/results/forecast.json.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts import parser_of, read_results

from flava_ds.recipes import resolve
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.facts import Facts
from flava_ds.scaling.hardware import cluster
from flava_ds.scaling.plan import Plan, plan
from flava_ds.scaling.setting import Measured, setting_of
from flava_ds.scaling.step_time import COMMUNICATION, PRODUCTS, TORCH
from flava_ds.storage.atomic import write_json

RESULT = Path(__file__).parent / "results" / "forecast.json"
RECIPE, SOURCE = "flava_base", "pmd"
CARDS, GPUS, PAIRS = ("h100", "h200", "a100"), (1, 8), (64, 128, 256)
NORMS = "layer_norm, add_layer_norm"
KERNELS = {
    PRODUCTS: (PRODUCTS,),
    "varlen_attention": ("varlen_attention",),
    NORMS: ("layer_norm", "add_layer_norm"),
    "linear_gelu, without its products": ("linear_gelu", "gelu_linear"),
    "linear_cross_entropy, without its products": ("linear_cross_entropy",),
    "info_nce": ("info_nce",),
    "fuse_sequences": ("fuse_sequences",),
    TORCH: (TORCH,),
}
"""Row -> the planner's kernels. A profile cannot tell the two norms apart."""
CODEBOOK, OPTIMIZER, COMMUNICATED, IDLE = (
    "image codebook",
    "optimizer",
    "communication, exposed",
    "waiting for the host",
)
ROWS = (*KERNELS, CODEBOOK, OPTIMIZER, COMMUNICATED, "stragglers", IDLE)
"""The parts of a step; they add up to it."""
BY_NAME = (
    (COMMUNICATED, r"nccl"),
    (OPTIMIZER, r"adam|multi_tensor"),
    (CODEBOOK, r"conv|fprop|dgrad|max_pool|nchwToNhwc|nhwcToNchw"),
    (PRODUCTS, r"gemm|gemv|nvjet|cutlass|cublas|xmma|splitk|s\d+gemm"),
)
"""Row -> names of kernels of libraries; the first that matches counts. What is left is torch's own."""
ON_THE_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def main() -> int:
    """Plans, reads what was measured, and writes both. Returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--measured", type=Path, metavar="FOLDER", help="of one device, by gpu_suite.sh")
    folder = parser.parse_args().measured
    before = read_results(RESULT, {})
    kept = before.get("measured", [])
    if folder is not None:
        runs = [own for pairs in PAIRS if (own := measured(folder / f"pairs-{pairs}", pairs))]
        if not runs:
            print(f"error: {folder} has no finished pairs-N; run benchmarks/gpu_suite.sh", file=sys.stderr)
            return 2
        new = {(run["card"], run["pairs"]) for run in runs}
        kept = [*(run for run in kept if (run["card"], run["pairs"]) not in new), *runs]
    found = {"recipe": RECIPE, "forecasts": forecasts(), "measured": kept}
    write_json(RESULT, found, indent=1)
    return 0


def forecasts() -> list[dict[str, Any]]:
    """Returns a plan's parts for every card, number of GPUs and micro-batch."""
    config = resolve(RECIPE, [])
    measure = Measured(config, lengths_of(config, None))
    found = []
    for card in CARDS:
        for gpus in GPUS:
            setting = setting_of(Facts.of(config), cluster(card, gpus, None, None), measure)
            for pairs in PAIRS:
                batches = dict.fromkeys(setting.global_batches, pairs * gpus)
                made = plan(dataclasses.replace(setting, global_batches=batches))
                found.append({"card": card, "gpus": gpus, "pairs": pairs, **numbers(made)})
    return found


def numbers(made: Plan) -> dict[str, Any]:
    """Returns a plan's step of pairs as low, middle and high: ms by row, host and MFU."""
    flops = made.setting.model.kinds[SOURCE].model_flops
    samples = made.setting.samples(SOURCE)
    work = flops.at(samples, samples * made.setting.cluster.gpus)
    peak = made.setting.cluster.gpu.flops

    def of(figures: Any, row: str) -> float:
        own = figures.times[SOURCE]
        if row in KERNELS:
            return sum(own.kernels.get(name, 0.0) for name in KERNELS[row])
        return sum(own.ms[part] for part in (COMMUNICATION if row == COMMUNICATED else (row,)))

    def ranged(value: Any) -> dict[str, float]:
        estimate = made.estimate(value)
        return {end: round(getattr(estimate, end), 4) for end in ("low", "middle", "high")}

    return {
        "peak_flops": peak,
        "ms": {row: ranged(lambda figures, row=row: of(figures, row)) for row in ROWS},
        "step_ms": ranged(lambda figures: figures.times[SOURCE].total),
        "host_ms": ranged(lambda figures: figures.times[SOURCE].host_ms),
        "mfu_percent": ranged(lambda figures: 1e5 * work / figures.times[SOURCE].total / peak),
    }


def measured(folder: Path, pairs: int) -> dict[str, Any] | None:
    """Returns a run of the suite in the rows of the forecast; None if it has not finished."""
    summary, traces = folder / "train_steps.json", sorted(folder.glob("train_steps/profile/trace_*.json.gz"))
    if not summary.is_file() or not traces:
        return None
    run = json.loads(summary.read_text(encoding="utf-8"))
    first, last = map(int, re.findall(r"\d+", traces[-1].name)[:2])
    with gzip.open(traces[-1], "rt", encoding="utf-8") as file:
        spent, busy = by_row(json.load(file)["traceEvents"])
    steps, pair = last - first + 1, run["kinds"]["pair"]
    step_ms = 1e3 * pair["seconds_per_step"]
    ms = {row: spent.get(row, 0.0) / steps for row in ROWS} | {IDLE: max(0.0, step_ms - busy / steps)}
    return {
        "card": run["hardware"]["device"],
        "commit": run["git"]["commit"],
        "pairs": pairs,
        "ms": {row: round(value, 4) for row, value in ms.items()},
        "step_ms": step_ms,
        "flops_per_second": pair["flops_per_second"],
    }


def by_row(events: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], float]:
    """Returns the ms of a profile's kernels by row, and the ms in which any of them ran.

    Kernels launched inside a range called CODEBOOK are its own, whatever they are called.
    """
    ours = our_kernels()
    ranges = [
        (event["tid"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "gpu_user_annotation" and event["name"] == CODEBOOK
    ]
    spent: defaultdict[str, float] = defaultdict(float)
    busy, until = 0.0, -math.inf
    for event in sorted(
        (event for event in events if event.get("cat") in ON_THE_DEVICE), key=lambda event: event["ts"]
    ):
        begin, end = event["ts"], event["ts"] + event["dur"]
        inside = any(event["tid"] == tid and low <= begin < high for tid, low, high in ranges)
        spent[CODEBOOK if inside else row_of(event, ours)] += event["dur"] / 1e3
        busy += max(0.0, end - max(begin, until)) / 1e3
        until = max(until, end)
    return dict(spent), busy


def row_of(event: Mapping[str, Any], ours: Mapping[tuple[str, int], str]) -> str:
    """Returns the row of a kernel by its name, of ours with its threads: two operators have a `_forward`."""
    block = event.get("args", {}).get("block") or [0]
    if (own := ours.get((event["name"], block[0]))) is not None:
        return own
    return next((row for row, names in BY_NAME if re.search(names, event["name"], re.IGNORECASE)), TORCH)


def our_kernels() -> dict[tuple[str, int], str]:
    """Returns (name, threads of a program) of each kernel of ours for NVIDIA's cards -> row.

    Raises: AssertionError when two rows have a kernel of one name and size.
    """
    from flava_kernels import OPS

    rows = {operator: row for row, operators in KERNELS.items() for operator in operators}
    found: dict[tuple[str, int], str] = {}
    for name, op in OPS.items():
        for launch in importlib.import_module(op.kernels).launches():
            if not launch.arch.startswith("sm_"):
                continue  # a warp of AMD's is twice as wide
            row, key = rows.get(name, TORCH), (launch.kernel.__name__, 32 * launch.num_warps)
            assert found.setdefault(key, row) == row, f"{key} is a kernel of '{found[key]}' and of '{row}'"
    return found


if __name__ == "__main__":
    sys.exit(main())
