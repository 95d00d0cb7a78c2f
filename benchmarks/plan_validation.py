"""Compares the planner with what is known: parameters, FLOPs, counted bytes, published rows, and real steps.

    python benchmarks/plan_validation.py [--memory] [--time] [--simulate] && make docs
    python benchmarks/plan_validation.py --example && make docs       # the worked example alone

The options also train on this machine's CPU, each for some minutes: --memory counts what steps hold, --time
measures rates and then steps, --simulate whole runs with checkpoints and a failure, by the rates of the last
--time. The last two want two idle cores. The numbers go to benchmarks/results/plan_validation.json and
plan_time.json, the worked example of docs/scaling.md to plan_example.json.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from flava_kernels.bench.machine import device_name
from plan_memory import measure_all
from plan_published import planned
from plan_rates import measure_rates
from plan_simulated import simulate_all
from plan_time import time_all
from scripts import parser_of, read_results

from flava_ds.config.objectives import in_use
from flava_ds.demo.dataset import unpack
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA
from flava_ds.scaling import advice, table
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.collectives import seconds
from flava_ds.scaling.facts import Facts
from flava_ds.scaling.hardware import cluster
from flava_ds.scaling.measure import measure
from flava_ds.scaling.plan import plan
from flava_ds.scaling.setting import Measured, setting_of
from flava_ds.scaling.traffic import payloads
from flava_ds.scaling.zero import zero_of
from flava_ds.storage.atomic import write_json
from flava_ds.training.engine_config import read_settings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("flava_debug", "demo", "demo_clip", "flava_base", "clip_base", "flava_large")
HOURS = 14 * 24
"""The worked example's budget on 64 GPUs: two weeks."""


def main() -> None:
    """Runs every comparison and writes the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--memory", action="store_true", help="measure what real steps hold")
    parser.add_argument("--time", action="store_true", help="measure rates and real steps")
    parser.add_argument("--simulate", action="store_true", help="measure real runs, after --time")
    parser.add_argument("--example", action="store_true", help="plan the worked example and nothing else")
    options = parser.parse_args()
    if options.example:
        write_example()
        return
    path = RESULTS / "plan_validation.json"
    before = read_results(path, {})
    published = json.loads((ROOT / "benchmarks" / "published_runs.json").read_text(encoding="utf-8"))
    found = {
        "recipes": [recipe_row(name) for name in RECIPES],
        "communication": communication(),
        "collectives": collectives(published["collectives"]),
        "published": efficiencies(published["rows"]),
        "planned": planned(published["rows"]),
        "memory": before.get("memory", []),
    }
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            found["memory"] = measure_all(Path(folder))
    if options.time or options.simulate:
        on_this_machine(options.time, options.simulate)
    write_json(path, found, indent=1)
    write_example()


def write_example() -> None:
    """Plans the worked example and writes it."""
    write_json(RESULTS / "plan_example.json", example(), indent=1)


def on_this_machine(steps: bool, runs: bool) -> None:
    """Measures rates and steps, or whole runs, on this machine, and writes them beside their forecasts.

    Raises: SystemExit for runs without rates.
    """
    path = RESULTS / "plan_time.json"
    found = read_results(path, {})
    if not steps and "rates" not in found:
        raise SystemExit(f"error: {path} has no rates of this machine; add --time")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        unpack(folder / DATA)
        if steps:
            found = about_this_machine() | {"rates": measure_rates(folder), "runs": found.get("runs", [])}
            found["steps"] = time_all(folder, found["rates"])
        if runs:
            found["runs"] = simulate_all(folder, found["rates"])
    write_json(path, rounded(found), indent=1)


def about_this_machine() -> dict[str, Any]:
    """Returns what was measured on."""
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "processor": device_name(torch.device("cpu")), "torch": metadata.version("torch")}


def rounded(found: Any) -> Any:
    """Returns plain values with five significant digits."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    return float(f"{found:.5g}") if isinstance(found, float) else found


def recipe_row(name: str) -> dict[str, Any]:
    """Compares the traced step with the family's closed form, and parameters with a model that is built."""
    config = resolve(name, [])
    work = measure(config, lengths_of(config, None))
    built = None
    if work.trainable < 200e6:  # larger ones would take gigabytes
        task = config.model.build(config)
        built = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
    rows = []
    for source, kind in work.kinds.items():
        forward = sum(o.flops.at(64, 0) * o.count for o in kind.operators if o.phase == "forward")
        fused = sum(o.flops.at(64) * o.count for o in kind.operators if o.name == "linear_cross_entropy")
        closed = kind.model_flops.at(64) / 3
        rows.append(
            {
                "source": source,
                "kind": kind.kind,
                "gflop": 3 * closed / 64e9,
                "traced": 3 * (forward - fused * 2 / 3) / 64e9,
                "saved_mib": kind.saved.each / 2**20,
                "peak_mib": kind.peak.each / 2**20,
                "operators": sum(operator.count for operator in kind.operators),
                "ours": sum(operator.count for operator in kind.operators if operator.custom),
            }
        )
    return {"recipe": name, "parameters": work.trainable, "built": built, "kinds": rows}


def communication() -> dict[str, int]:
    """Counts the rows of benchmarks/results/communication.json whose bytes the planner gives exactly."""
    counted = json.loads((RESULTS / "communication.json").read_text(encoding="utf-8"))
    config = resolve(counted["recipe"], [])
    work = measure(config, lengths_of(config, None))
    rows = [row for row in counted["rows"] if not row["changed"] and "," not in row["setting"]]
    equal = 0
    for row in rows:
        settings, path = read_settings(row["setting"])
        zero = zero_of(settings, Path(path), "fp32", 1)
        source = next(name for name, kind in work.kinds.items() if kind.kind == row["kind"])
        planned = payloads(
            work, source, zero, counted["ranks"], row["samples"], len(in_use(config.objectives))
        )
        equal += planned == {(part, collective): size for part, collective, size in row["measured"]}
    return {"rows": len(rows), "equal": equal}


def collectives(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares all_reduce's busbw with published rows, in GB/s by MiB."""
    found = []
    for row in rows:
        machines = cluster(row["gpu"], row["gpus"], None, None)
        ours = {}
        for mib in row["busbw"]:
            payload = int(mib) * 2**20
            moved = payload * 2 * (row["gpus"] - 1) / row["gpus"]
            ours[mib] = moved / seconds("all_reduce", payload, machines) / 1e9
        found.append({**row, "planned": ours})
    return found


def efficiencies(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fits one efficiency for each (GPU, era) on the calibration rows, and predicts the others."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["use"] == "calibrate":
            groups[architecture(row["gpu"]), row["era"]].append(row["mfu"])
    fitted = {key: math.exp(statistics.fmean(map(math.log, values))) for key, values in groups.items()}
    found = [
        {**row, "planned": fitted[key]}
        for row in rows
        if (key := (architecture(row["gpu"]), row["era"])) in fitted
    ]
    errors = sorted(abs(row["planned"] / row["mfu"] - 1) for row in found if row["use"] == "test")
    spread = sorted(1 / repeat - 1 for row in rows for repeat in row.get("repeats", []))
    return {
        "fitted": [{"gpu": gpu, "era": era, "mfu": mfu} for (gpu, era), mfu in fitted.items()],
        "rows": found,
        "test_rows": len(errors),
        "median_error": statistics.median(errors),
        "error_90": errors[math.ceil(0.9 * len(errors)) - 1],
        "repeats": len(spread),
        "median_spread": statistics.median(spread),
        "spread_90": spread[math.ceil(0.9 * len(spread)) - 1],
    }


def architecture(gpu: str) -> str:
    """Returns the GPU without its memory: a100-40 counts as a100."""
    return gpu.split("-")[0]


def example() -> dict[str, Any]:
    """Plans the worked example: 64 H100 for two weeks, with flava_base, flava_large and a wider one."""
    wide = [
        word
        for part, layers in (("image", 32), ("text", 24), ("multimodal", 12))
        for word in (
            f"--model.{part}.hidden-size=1280",
            f"--model.{part}.intermediate-size=5120",
            f"--model.{part}.num-attention-heads=20",
            f"--model.{part}.num-hidden-layers={layers}",
        )
    ]
    runs = {
        "flava_base": [],
        "flava_large": [],
        "1280 wide, 32/24/12 layers": [*wide, "--model.projection-dim=1280"],
    }
    found = {}
    for name, overrides in runs.items():
        fix = ""
        for _ in range(2):  # as it is, and with what makes it fit
            config = resolve("flava_base" if name not in RECIPES else name, [*overrides, *fix.split()])
            lengths = lengths_of(config, None)
            measured = Measured(config, lengths)
            made = plan(setting_of(Facts.of(config), cluster("h100", 64, 8, None), measured))
            needed = advice.refuse_if_it_fits_nowhere(made, measured)
            if not needed:
                break
            fix = needed.partition(" would fit")[0]
        helps = advice.advise(made, measured)
        found[name] = table.as_json(made, lengths, helps, needed, None) | {"options": fix}
        del found[name]["assumptions"]
        samples = sum(share * made.setting.global_batches[s] for s, share in made.setting.shares.items())
        rate = made.estimate(lambda figures: figures.samples_per_second)
        found[name]["steps_in_budget"] = [
            round(3600 * HOURS * each / samples) for each in (rate.low, rate.middle, rate.high)
        ]
    return {"gpus": 64, "hours": HOURS, "runs": found}


if __name__ == "__main__":
    main()
