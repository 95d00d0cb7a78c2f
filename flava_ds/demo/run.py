"""The demo: data, codebook, training through the deepspeed launcher, evaluation, export and report, within a given time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flava_ds.commands.codebook import picture_source
from flava_ds.demo.training import follow_training, seconds_per_step
from flava_ds.errors import UserError
from flava_ds.ranks.launch import Launch, check_batches, check_ranks, plan_launch
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA

LEAST_MINUTES = 1.0
CODEBOOK_SHARE = 0.08
"""Of the whole time."""
AFTER_TRAINING_SHARE, AFTER_TRAINING_LEAST_S = 0.02, 45.0
"""Of the whole time, for evaluation, export and report; they do not get shorter than some seconds."""
SAFETY = 0.95
"""Share of the remaining time that training plans to use: a busy machine is slower than the calibration."""
CALIBRATION_STEPS = 30
LAUNCH_S = 20.0
"""What the launcher needs before the first step, about."""
LEAST_STEPS = 20


@dataclass(kw_only=True)
class Demo:
    """One demo run: where it is, how long it may take, and what its phases took so far."""

    minutes: float
    ranks: int
    run_path: Path
    started: float = field(default_factory=time.monotonic)
    phases: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    """What a resumed demo must not decide again, precision and total_steps, and the seconds that it has used up."""

    @contextlib.contextmanager
    def phase(self, name: str, what: str) -> Iterator[None]:
        """Prints a header and records the seconds."""
        start = time.monotonic()
        print(f"\n== {len(self.phases) + 1}/8 {name}: {what} (minute {(start - self.started) / 60:.1f} of {self.minutes:g})", flush=True)
        yield
        self.phases.append({"name": name, "seconds": time.monotonic() - start})
        self.save_state(used_s=time.monotonic() - self.started)

    def left_s(self) -> float:
        """Seconds until the time is over."""
        return self.started + 60 * self.minutes - time.monotonic()

    def save_state(self, **decided: Any) -> None:
        """Keeps what --resume needs."""
        self.state |= decided
        self.run_path.mkdir(parents=True, exist_ok=True)
        (self.run_path / "demo_state.json").write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")

    def overrides(self, name: str, run_directory: Path) -> list[str]:
        """The command line of this demo's launches beyond the recipe."""
        words = ["--name", name, "--logging.run-directory", str(run_directory)]
        return words + ["--training.precision", self.state["precision"], "--codebook-weights", str(self.run_path / "codebook.safetensors")]


def run(*, minutes: float, ranks: int, resume: bool, enforce_gates: bool) -> int:
    """Runs the demo and prints its table. Returns 0, or 1 when a gate was missed and gates are enforced.

    Raises: UserError on a time too short, ranks that the machine or a batch cannot be divided among, or nothing to resume, or a phase that failed.
    """
    if not LEAST_MINUTES <= minutes < math.inf:
        raise UserError(f"--minutes {minutes:g}: the demo needs at least {LEAST_MINUTES:g} minute, and an end")
    check_ranks(ranks, gpus=0)
    check_batches(resolve("demo", []), ranks)
    demo = open_demo(minutes, ranks, resume)
    print(f"FLAVA demo in {demo.run_path}: {minutes:g} minutes on {len(os.sched_getaffinity(0))} cores, {ranks} ranks", flush=True)
    with demo.phase("data", "unpack the committed drawings and texts"):
        from flava_ds.demo.dataset import unpack

        data = unpack(DATA)
    with demo.phase("precision", "measure matrix products in fp32 and bf16"):
        choose_precision(demo)
    with demo.phase("codebook", "train the image tokenizer"):
        train_codebook(demo, data)
    with demo.phase("calibrate", "take a few real steps to see how many fit"):
        calibrate(demo)
    with demo.phase("train", f"{demo.state['total_steps']} steps, six losses, {ranks} ranks, ZeRO-1, {demo.state['precision']}"):
        train(demo)
    with demo.phase("evaluate", "a drawing style and concepts that training never saw"):
        from flava_ds.evaluation.evaluator import evaluate_run

        evaluation = evaluate_run(demo.run_path, data=data, limit_s=max(60.0, demo.left_s() - 20.0))
    with demo.phase("export", "write Hugging Face's format, read it with transformers, compare logits"):
        difference = export(demo)
    with demo.phase("report", "one page"):
        from flava_ds.report.page import write_report

        page = write_report(demo.run_path)
    return conclude(demo, evaluation, difference, page, enforce_gates)


def open_demo(minutes: float, ranks: int, resume: bool) -> Demo:
    """Names a new run, or takes up the latest one of this length.

    Raises: UserError when there is nothing to resume.
    """
    runs = Path("runs")
    base = f"demo-{minutes:g}min"
    made = sorted(runs.glob(f"{base}*/demo_state.json"), key=lambda path: path.stat().st_mtime)
    if resume:
        if not made:
            raise UserError(f"--resume: no run named {base} in {runs}/; run without --resume first")
        state = json.loads(made[-1].read_text(encoding="utf-8"))
        return Demo(minutes=minutes, ranks=ranks, run_path=made[-1].parent, state=state, started=time.monotonic() - used_seconds(made[-1], state))
    number = 1
    while (path := runs / (base if number == 1 else f"{base}-{number}")).exists():
        number += 1
    return Demo(minutes=minutes, ranks=ranks, run_path=path)


def used_seconds(state_file: Path, state: dict[str, Any]) -> float:
    """Returns what an interrupted demo has used of its time: its finished phases, and training up to the last line of its log."""
    log = state_file.parent / "log.jsonl"
    training = log.stat().st_mtime - state_file.stat().st_mtime if log.exists() else 0.0
    return state.get("used_s", 0.0) + max(0.0, training)


def choose_precision(demo: Demo) -> None:
    """Decides for bf16 when its matrix products are clearly faster here, for fp32 otherwise."""
    if "precision" in demo.state:
        return
    threads = max(1, len(os.sched_getaffinity(0)) // demo.ranks)
    rates = {name: gemm_rate(name, threads) for name in ("float32", "bfloat16")}
    precision = "bf16" if rates["bfloat16"] > 1.2 * rates["float32"] else "fp32"
    print(f"fp32 {rates['float32']:.0f}, bf16 {rates['bfloat16']:.0f} GFLOP/s with {threads} thread(s): {precision}", flush=True)
    demo.save_state(precision=precision)


def gemm_rate(dtype: str, threads: int, seconds: float = 0.5) -> float:
    """Measures products of the model's MLP shape: GFLOP/s."""
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


def train_codebook(demo: Demo, data: Any) -> None:
    """Trains the codebook for its share of the time, unless a resumed run has it."""
    out = demo.run_path / "codebook.safetensors"
    if out.exists():
        return
    from flava_ds.codebook.config import DEMO
    from flava_ds.codebook.training import train_codebook as fit

    config = resolve("demo", [])
    shards = sorted(str(path) for folder in (data.pairs_train, data.images) for path in folder.glob("*.tar"))
    source = picture_source(config, "{" + ",".join(shards) + "}")
    training = dataclasses.replace(DEMO, max_seconds=CODEBOOK_SHARE * 60 * demo.minutes, precision=demo.state["precision"])
    fit(config, source, out, training=training, on_report=lambda report: print(report, flush=True))


def calibrate(demo: Demo) -> None:
    """Decides how many steps fit into the time that evaluation, export and report leave."""
    if "total_steps" in demo.state:
        return
    words = demo.overrides("calibration", demo.run_path)
    words += ["--training.total-steps", str(CALIBRATION_STEPS), "--schedule.warmup-steps", "1", "--logging.every-steps", "1"]
    words += ["--checkpoint.every-steps", "0", "--logging.no-tensorboard"]
    follow_training(cpu_launch(words, demo.ranks), demo.run_path / "calibration", CALIBRATION_STEPS)
    per_step = seconds_per_step(demo.run_path / "calibration" / "log.jsonl", resolve("demo", words))
    reserve = max(AFTER_TRAINING_LEAST_S, AFTER_TRAINING_SHARE * 60 * demo.minutes)
    steps = int(SAFETY * (demo.left_s() - reserve - LAUNCH_S) / per_step)
    fitting = f"{steps} steps fit" if steps >= LEAST_STEPS else f"too little time is left, so {LEAST_STEPS} steps will be made"
    print(f"{per_step:.2f} s for a step on average: {fitting}", flush=True)
    demo.save_state(total_steps=max(LEAST_STEPS, steps))


def train(demo: Demo) -> None:
    """Trains through the launcher, showing a live line."""
    steps = demo.state["total_steps"]
    words = demo.overrides(demo.run_path.name, demo.run_path.parent)
    words += ["--training.total-steps", str(steps), "--schedule.warmup-steps", str(max(1, steps // 10)), "--checkpoint.every-steps", str(max(50, steps // 4))]
    words += ["--logging.objective-gradient-norms-every", str(max(10, steps // 6))]
    follow_training(cpu_launch(words, demo.ranks), demo.run_path, steps)


def cpu_launch(overrides: list[str], ranks: int) -> Launch:
    """Composes the launch on CPU ranks; a GPU of the machine stays unused, so that the demo is the same everywhere."""
    launch = plan_launch("demo", overrides, ranks=ranks, gpus=0)
    return dataclasses.replace(launch, environment={**launch.environment, "CUDA_VISIBLE_DEVICES": ""})


def export(demo: Demo) -> float:
    """Exports to Hugging Face's format and returns the largest relative difference of logits after reading it back."""
    from flava_ds.hf import export_weights

    out = export_weights.export(demo.run_path, demo.run_path / "huggingface")
    difference = export_weights.verify_export(demo.run_path, out)
    print(f"{out}: transformers' logits differ by {difference:.1e} at most", flush=True)
    return difference


def conclude(demo: Demo, evaluation: dict[str, Any], difference: float, page: Path, enforce_gates: bool) -> int:
    """Prints the table, writes demo.json, and returns the exit status."""
    from flava_ds.evaluation.evaluator import aims, gates, table

    seconds = time.monotonic() - demo.started
    found = [*gates(evaluation, demo.minutes), ("minutes", seconds / 60, demo.minutes, seconds <= 60 * demo.minutes)]
    print("\n" + table(evaluation))
    lines = [("pass" if gate[3] else "MISS", *gate) for gate in found] + [("pass" if aim[3] else "-", f"aim: {aim[0]}", *aim[1:]) for aim in aims(evaluation)]
    width = max(len(name) for _, name, *_ in lines)
    print(f"\n{'':<5}{'gates':<{width}}{'value':>9}{'wanted':>9}")
    for verdict, name, value, threshold, _ in lines:
        print(f"{verdict:<5}{name:<{width}}{value:>9.3g}{threshold:>9.3g}")
    summary = {
        "recipe": "demo",
        "run": demo.run_path.name,
        "minutes": demo.minutes,
        "ranks": demo.ranks,
        "seconds": seconds,
        "steps": demo.state["total_steps"],
        "precision": demo.state["precision"],
        "phases": demo.phases,
        "export_difference": difference,
        "gates": [
            {"what": name, "value": f"{value:.3g}", "wanted": f"{threshold:.3g}", "passed": bool(passed and not math.isnan(value))}
            for name, value, threshold, passed in found
        ],
        "machine": describe_machine(),
    }
    (demo.run_path / "demo.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    missed = sum(not gate["passed"] for gate in summary["gates"])
    print(f"\n{len(found) - missed} of {len(found)} gates passed; {seconds / 60:.1f} minutes; report: {page}", flush=True)
    return 1 if missed and enforce_gates else 0


def describe_machine() -> dict[str, Any]:
    """Names what the numbers depend on."""
    import torch
    from flava_kernels.bench.machine import device_name

    libraries = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    cores, processor = len(os.sched_getaffinity(0)), device_name(torch.device("cpu"))
    return {"cores": cores, "processor": processor, "python": platform.python_version(), **libraries}
