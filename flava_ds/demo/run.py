"""The demo: data, training through the deepspeed launcher, evaluation, export and report; resumable."""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import version
from typing import Any

from flava_ds.demo.phases import page_of, phases, trained_steps
from flava_ds.demo.state import SUMMARY, Demo, Plan, open_demo
from flava_ds.demo.works import WORKS, expected_seconds
from flava_ds.errors import UserError, did_you_mean, number_of
from flava_ds.ranks.launch import check_batches, check_ranks
from flava_ds.recipes import resolve
from flava_ds.storage.atomic import write_json

LEAST_MINUTES = 1.0


def run(plan: Plan, *, ranks: int, new: bool = False) -> int:
    """Runs the demo and prints its table. Returns 0, or 1 if a gate of a fixed work failed.

    Raises: UserError on an unknown work, too little time, ranks that do not fit the machine or divide a
    batch, or a failed phase.
    """
    check(plan, ranks)
    demo = open_demo(plan, ranks, new=new)
    cores = len(os.sched_getaffinity(0))
    machine = f"{number_of(cores, 'core')}, {number_of(ranks, 'rank')}"
    print(f"FLAVA demo in {demo.run_path}: {describe(plan)}, on {machine}", flush=True)
    if demo.state["interruptions"]:
        minutes = f"{demo.used_s() / 60:.1f} minutes"
        print(f"resuming the demo that was stopped after {minutes} (--new starts another one)", flush=True)
    try:
        go_through(demo)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command resumes {demo.run_path}", flush=True)
        raise
    return conclude(demo)


def check(plan: Plan, ranks: int) -> None:
    """Raises UserError for impossible requests, before any work."""
    if plan.minutes is not None and not LEAST_MINUTES <= plan.minutes < math.inf:
        raise UserError(
            f"--minutes {plan.minutes:g}: the demo needs at least {LEAST_MINUTES:g} minute, and a limit"
        )
    if plan.minutes is None and plan.work not in WORKS:
        raise UserError(
            f"--work {plan.work}: no such work{did_you_mean(f'{plan.work}', WORKS)}; choose one "
            f"of {', '.join(WORKS)}"
        )
    check_ranks(ranks, gpus=0)
    check_batches(resolve("demo", []), ranks)


def describe(plan: Plan) -> str:
    """Describes what will be done, and what will not."""
    if plan.fixed is None:
        return f"what fits into {plan.minutes:g} minutes, so without gates"
    gates = "" if plan.fixed.thresholds else ", without gates"
    return f"the work '{plan.work}', {plan.fixed.total_steps} steps{gates}"


def go_through(demo: Demo) -> None:
    """Runs every phase that is not done."""
    todo = phases(demo)
    for number, phase in enumerate(todo, start=1):
        if phase.done(demo):
            print(f"\n== {number}/{len(todo)} {phase.name}: done before", flush=True)
            continue
        when = f"minute {demo.used_s() / 60:.1f}{time_left(demo)}"
        print(f"\n== {number}/{len(todo)} {phase.name}: {phase.what} ({when})", flush=True)
        with demo.timed(phase.name):
            phase.act(demo)


def time_left(demo: Demo) -> str:
    """Returns the approximate time left, from the measured matrix product rates or the given minutes."""
    if demo.plan.fixed is None:
        return f" of {demo.plan.minutes:g}"
    if "fp32_rate" not in demo.state:
        return ""
    rates = demo.state["gemm_rate"], demo.state["fp32_rate"]
    seconds = expected_seconds(demo.total_steps - trained_steps(demo), *rates)
    return f", very roughly {max(1, round(seconds / 60))} more here"


def conclude(demo: Demo) -> int:
    """Prints the table, writes demo.json, and returns the exit status."""
    from flava_ds.demo.evaluation.summary import aims, gates, table

    evaluation = json.loads((demo.run_path / "evaluation.json").read_text(encoding="utf-8"))
    thresholds = demo.plan.fixed.thresholds if demo.plan.fixed else {}
    found = gates(evaluation, thresholds) if thresholds else []
    print("\n" + table(evaluation))
    lines = [("pass" if gate[3] else "MISS", *gate) for gate in found] + [
        ("pass" if aim[3] else "-", f"aim: {aim[0]}", *aim[1:]) for aim in aims(evaluation)
    ]
    width = max(len(name) for _, name, *_ in lines)
    print(f"\n{'':<5}{'gates' if found else '':<{width}}{'value':>9}{'wanted':>9}")
    for verdict, name, value, threshold, _ in lines:
        print(f"{verdict:<5}{name:<{width}}{value:>9.3g}{threshold:>9.3g}")
    summary = summarise(demo, found)
    write_json(demo.run_path / SUMMARY, summary)
    missed = sum(not gate["passed"] for gate in summary["gates"])
    verdict = (
        f"{len(found) - missed} of {len(found)} gates passed"
        if found
        else f"no gates: only {' and '.join(gated_works())} have them"
    )
    print(f"\n{verdict}; {demo.used_s() / 60:.1f} minutes; report: {page_of(demo)}", flush=True)
    return 1 if missed else 0


def gated_works() -> list[str]:
    """Names the works that have gates."""
    return [f"--work {work.name}" for work in WORKS.values() if work.thresholds]


def summarise(demo: Demo, found: list[tuple[str, float, float, bool]]) -> dict[str, Any]:
    """Returns the summary of a demo."""
    return {
        "recipe": "demo",
        "run": demo.run_path.name,
        "work": demo.plan.work if demo.plan.fixed else None,
        "minutes": demo.plan.minutes,
        "ranks": demo.ranks,
        "seconds": demo.used_s(),
        "interruptions": demo.state["interruptions"],
        "steps": demo.total_steps,
        "precision": demo.state["precision"],
        "phases": [{"name": name, "seconds": seconds} for name, seconds in demo.state["phases"].items()],
        "export_difference": demo.state["export_difference"],
        "gates": [
            {
                "what": name,
                "value": f"{value:.3g}",
                "wanted": f"{threshold:.3g}",
                "passed": bool(passed and not math.isnan(value)),
            }
            for name, value, threshold, passed in found
        ],
        "machine": describe_machine(),
    }


def describe_machine() -> dict[str, Any]:
    """Describes the hardware and software that the numbers depend on."""
    import torch
    from flava_kernels.bench.machine import device_name

    libraries = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    cores, processor = len(os.sched_getaffinity(0)), device_name(torch.device("cpu"))
    return {"cores": cores, "processor": processor, "python": platform.python_version(), **libraries}
