"""The demo's phases, in order. A restarted demo skips the phases whose output exists."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flava_ds.demo import codebook
from flava_ds.demo.state import Demo
from flava_ds.demo.training import follow_training, seconds_per_step, wait_for_folder
from flava_ds.ranks.launch import Launch, plan_launch
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA

CALIBRATION_STEPS = 30
SAFETY = 0.95
"""Share of the remaining time that training plans to use, since a busy machine is slower than calibrated."""
AFTER_TRAINING_SHARE, AFTER_TRAINING_LEAST_S = 0.02, 45.0
"""Share of the total time, and minimum, for evaluation, export and report."""
LAUNCH_S = 20.0
"""Approximate time that the launcher needs before the first step."""
LEAST_STEPS = 20
LEAST_EVALUATION_S, REPORT_S = 60.0, 20.0
"""Minimum seconds for evaluation, and seconds reserved for what follows."""


class Phase(NamedTuple):
    """One phase of a demo: its name, a description, whether it is done, and how to do it."""

    name: str
    what: str
    done: Callable[[Demo], bool]
    act: Callable[[Demo], None]


def phases(demo: Demo) -> list[Phase]:
    """Lists this demo's phases."""
    found = [
        Phase("data", "unpack the committed drawings and texts", lambda demo: False, unpack_data),
        Phase(
            "precision",
            "measure matrix products in fp32 and bf16",
            lambda demo: "precision" in demo.state,
            choose_precision,
        ),
    ]
    if demo.plan.train_codebook:
        found.append(
            Phase("codebook", "train an image tokenizer", lambda demo: demo.codebook.exists(), train_codebook)
        )
    if demo.plan.fixed is None:
        found.append(
            Phase(
                "calibrate",
                "make a few real steps to see how many fit",
                lambda demo: "total_steps" in demo.state,
                calibrate,
            )
        )
    return found + [
        Phase("train", "six losses, ZeRO-1, through the deepspeed launcher", is_trained, train),
        Phase("evaluate", "drawing styles and concepts that training never saw", is_evaluated, evaluate),
        Phase(
            "export",
            "write Hugging Face's format, read it with transformers, compare logits",
            lambda demo: "export_difference" in demo.state,
            export,
        ),
        Phase("report", "one page", lambda demo: page_of(demo).exists(), report),
    ]


def unpack_data(demo: Demo) -> None:
    """Unpacks the data set if necessary."""
    from flava_ds.demo.dataset import unpack

    unpack(DATA)


def choose_precision(demo: Demo) -> None:
    """Chooses bf16 if its matrix products are clearly faster on this machine, else fp32."""
    threads = max(1, len(os.sched_getaffinity(0)) // demo.ranks)
    rates = {name: gemm_rate(name, threads) for name in ("float32", "bfloat16")}
    precision = "bf16" if rates["bfloat16"] > 1.2 * rates["float32"] else "fp32"
    measured = f"fp32 {rates['float32']:.0f}, bf16 {rates['bfloat16']:.0f} GFLOP/s with {threads} thread(s)"
    print(f"{measured}: {precision}", flush=True)
    at_once = min(demo.ranks, len(os.sched_getaffinity(0)))
    rate = rates["bfloat16" if precision == "bf16" else "float32"]
    demo.save(precision=precision, gemm_rate=at_once * rate, fp32_rate=at_once * rates["float32"])


def gemm_rate(dtype: str, threads: int, seconds: float = 0.5) -> float:
    """Measures products of the model's MLP shape, in GFLOP/s.

    Not flava_kernels.bench.machine.gemm_rate: training time follows from the mean over some time, not from
    the best.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    left = torch.randn(4096, 192).to(getattr(torch, dtype))
    right = torch.randn(192, 768).to(getattr(torch, dtype))
    left @ right
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        left @ right
        products += 1
    elapsed = time.perf_counter() - start
    torch.set_num_threads(before)
    return 2 * products * 4096 * 192 * 768 / elapsed / 1e9


def train_codebook(demo: Demo) -> None:
    """Trains a codebook like the committed one."""
    codebook.train(demo.codebook, lambda report: print(report, flush=True))


def calibrate(demo: Demo) -> None:
    """Determines how many steps fit into the time that evaluation, export and report leave."""
    words = demo.overrides("calibration", demo.run_path)
    words += [
        "--training.total-steps",
        str(CALIBRATION_STEPS),
        "--schedule.warmup-steps",
        "1",
        "--logging.every-steps",
        "1",
    ]
    words += ["--checkpoint.every-steps", "0", "--logging.no-tensorboard"]
    follow_training(cpu_launch(words, demo.ranks), demo.run_path / "calibration", CALIBRATION_STEPS)
    per_step = seconds_per_step(demo.run_path / "calibration" / "log.jsonl", resolve("demo", words))
    reserve = max(AFTER_TRAINING_LEAST_S, AFTER_TRAINING_SHARE * demo.given_s)
    steps = int(SAFETY * (demo.left_s() - reserve - LAUNCH_S) / per_step)
    fitting = (
        f"{steps} steps fit"
        if steps >= LEAST_STEPS
        else f"too little time is left; making the minimum of {LEAST_STEPS} steps"
    )
    print(f"{per_step:.2f} s for a step on average: {fitting}", flush=True)
    demo.save(total_steps=max(LEAST_STEPS, steps))


def train(demo: Demo) -> None:
    """Trains through the launcher from the latest checkpoint, showing a live line."""
    steps = demo.total_steps
    words = demo.overrides(demo.run_path.name, demo.run_path.parent)
    words += [
        "--training.total-steps",
        str(steps),
        "--schedule.warmup-steps",
        str(max(1, steps // 20)),
        "--checkpoint.every-minutes",
        "0.5",
    ]
    words += [
        "--checkpoint.every-steps",
        str(max(50, steps // 4)),
        "--logging.objective-gradient-norms-every",
        str(max(10, steps // 6)),
    ]
    wait_for_folder(demo.run_path)
    follow_training(cpu_launch(words, demo.ranks), demo.run_path, steps)


def cpu_launch(overrides: list[str], ranks: int, recipe: str = "demo") -> Launch:
    """Composes the launch on CPU ranks; GPUs stay unused, so that the demo is the same everywhere."""
    launch = plan_launch(recipe, overrides, ranks=ranks, gpus=0)
    return dataclasses.replace(launch, environment={**launch.environment, "CUDA_VISIBLE_DEVICES": ""})


def trained_steps(demo: Demo) -> int:
    """Returns the steps of the latest complete checkpoint, or 0."""
    from flava_ds import config as configuration
    from flava_ds.checkpoints.files import latest, place_of, step_of

    if not (demo.run_path / "config.json").exists():
        return 0
    checkpoint = latest(place_of(demo.run_path, configuration.load(demo.run_path / "config.json")))
    return step_of(checkpoint.name) if checkpoint else 0


def is_trained(demo: Demo) -> bool:
    """Returns True if all steps are made and saved."""
    return trained_steps(demo) >= demo.total_steps


def is_evaluated(demo: Demo) -> bool:
    """Returns True if the last step has been evaluated."""
    path = demo.run_path / "evaluation.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["step"] >= demo.total_steps


def evaluate(demo: Demo) -> None:
    """Runs the evaluation, with a time limit if the plan is in minutes."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.demo.evaluation.evaluator import evaluate_run

    limit_s = None if demo.plan.fixed else max(LEAST_EVALUATION_S, demo.left_s() - REPORT_S)
    evaluate_run(demo.run_path, data=unpack(DATA), limit_s=limit_s)


def export(demo: Demo) -> None:
    """Exports to Hugging Face's format and records the largest relative difference of reloaded logits."""
    from flava_ds.hf import export_weights

    out = export_weights.export(demo.run_path, demo.run_path / "huggingface")
    difference = export_weights.verify_export(demo.run_path, out)
    print(f"{out}: transformers' logits differ by at most {difference:.1e}", flush=True)
    demo.save(export_difference=difference)


def report(demo: Demo) -> None:
    """Writes the page."""
    from flava_ds.demo.evaluation.held_out import held_out_of
    from flava_ds.report.page import write_report

    print(write_report(demo.run_path, held_out_of(demo.run_path)), flush=True)


def page_of(demo: Demo) -> Path:
    """Path of the report page."""
    return demo.run_path / "report.html"
