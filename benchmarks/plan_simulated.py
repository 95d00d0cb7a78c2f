"""Runs real training with checkpoints and a failure on this machine, beside the simulator's account of it.

One of plan_validation.py's parts. A rank of each run is killed once, and the run's own supervisor restarts
all of them from the latest checkpoint. What a checkpoint and a restart cost is taken from a run of
`demo_clip`, what a step costs from plan_rates.py; the runs that are simulated are those of `demo`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from plan_time import Case, setting_of_case

STEPS, EVERY, KILL_AFTER, RECORD = 100, 20, 50, 5
"""Steps of a run, between checkpoints, before the kill, and between lines of the log."""
WAIT_S = 240.0
OTHERS, TRIES = 0.05, 3
"""Share of the cores that other processes may use during a run; else it is taken again. The least disturbed
counts, and its share is kept with it."""
SLOWED = 0.5
"""Share of its time that a rank loses while its checkpoint is written, if no core is idle: the writer is a
thread that wants the same core. With an idle core it loses nothing."""


def run_words(folder: Path, case: Case, name: str) -> list[str]:
    """Returns the options of a run with a checkpoint every EVERY steps."""
    words = ["--logging.run-directory", str(folder / "runs"), "--name", name, "--logging.every-steps"]
    words += [str(RECORD), "--logging.no-tensorboard", "--checkpoint.every-steps", str(EVERY)]
    words += ["--training.total-steps", str(STEPS), "--schedule.warmup-steps", "10"]
    return [*words, "--data.num-workers", "1" if case.ranks == 1 else "0"]


def undisturbed_run(case: Case, folder: Path) -> dict[str, Any]:
    """Returns the run during which other processes used the cores least, of TRIES or fewer."""
    found: list[dict[str, Any]] = []
    while len(found) < TRIES and not any(run["others"] <= OTHERS for run in found):
        before = busy_seconds()
        run = real_run(case, folder, f"simulated_{case.recipe}_{case.ranks}_{len(found)}")
        own, everything, wall = (now - then for now, then in zip(busy_seconds(), before, strict=True))
        share = max(0.0, everything - own) / (wall * len(os.sched_getaffinity(0)))
        found.append(run | {"others": share})
        print(f"`{case.recipe}` on {case.ranks}: other processes used {share:.0%} of the cores", flush=True)
    return min(found, key=lambda run: run["others"])


def busy_seconds() -> tuple[float, float, float]:
    """Returns the CPU seconds of this process and its children, those of the machine, and the wall time."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    user, nice, system, _, _, irq, soft, stolen = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]
    )
    ticks = os.sysconf("SC_CLK_TCK")
    return own, (user + nice + system + irq + soft + stolen) / ticks, time.monotonic()


def real_run(case: Case, folder: Path, name: str) -> dict[str, Any]:
    """Trains, kills a rank after KILL_AFTER steps, and returns where the wall time went, in seconds."""
    from flava_ds.ranks.launch import plan_supervised

    launch = plan_supervised(case.recipe, run_words(folder, case, name), ranks=case.ranks, gpus=0, restarts=1)
    environment = {**os.environ, **launch.environment, "OMP_NUM_THREADS": "1"}
    run, said = folder / "runs" / name, folder / f"{name}.txt"
    begun = time.time()
    with said.open("w", encoding="utf-8") as file:
        job = subprocess.Popen(launch.arguments, cwd=folder, env=environment, stdout=file, stderr=file)
        while not (lines := lines_of(run)) or lines[-1]["step"] + 1 < KILL_AFTER:
            if job.poll() is not None or time.time() - begun > WAIT_S:
                raise SystemExit(
                    f"error: {name} did not come to step {KILL_AFTER}: {said.read_text()[-500:]}"
                )
            time.sleep(0.01)
        rank = json.loads((run / "lock.json").read_text(encoding="utf-8"))["pid"]
        killed = time.time()
        os.kill(rank, signal.SIGKILL)
        before = lines_of(run)  # a resumed run cuts off what it repeats
        if status := job.wait(WAIT_S):
            raise SystemExit(f"error: {name} ended with {status}; its words are in {said}")
    ended, after = time.time(), [line for line in lines_of(run) if line["time"] > killed]
    return split((before, after), begun, killed, ended) | paused(said.read_text(encoding="utf-8"))


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Returns the records of a log."""
    file = run / "log.jsonl"
    texts = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    return [line for line in map(json.loads, texts) if "seconds_per_step" in line]


def split(
    attempts: tuple[list[dict[str, Any]], list[dict[str, Any]]], begun: float, killed: float, ended: float
) -> dict[str, float]:
    """Divides the wall time of a run that was killed once, from the records before and after.

    `wall` is from the first step's begin to the last step's end; start and the last checkpoint are beside it.
    """

    def begin(own: list[dict[str, Any]]) -> float:
        return own[0]["time"] - RECORD * own[0]["seconds_per_step"]

    steps = {line["step"]: RECORD * line["seconds_per_step"] for own in attempts for line in own}
    last = attempts[1][-1]["time"]
    stood = sum(
        two["time"] - one["time"] - RECORD * two["seconds_per_step"]
        for own in attempts
        for one, two in pairwise(own)
    )
    resumed = attempts[1][0]["step"] + 1 - RECORD
    kept = max(line["time"] for line in attempts[0] if line["step"] < resumed)
    stood_late = sum(
        two["time"] - one["time"] - RECORD * two["seconds_per_step"]
        for one, two in pairwise(attempts[0])
        if one["step"] + 1 == resumed
    )
    return {
        "wall": last - begin(attempts[0]),
        "steps": sum(steps.values()),
        "checkpoints": stood,
        "lost work": killed - kept - stood_late,
        "detection and restart": begin(attempts[1]) - killed,
        "resumed_at": float(resumed),
        "start": begin(attempts[0]) - begun,
        "closing": ended - last,
    }


def paused(said: str) -> dict[str, float]:
    """Returns the medians of what the run says of its checkpoints."""
    found = re.findall(r"training paused for ([\d.]+) s, [\d.]+ GiB were written within ([\d.]+) s", said)
    stands, writes = (statistics.median(map(float, column)) for column in zip(*found, strict=True))
    return {"stands": stands, "writes": writes}


def simulated_run(
    case: Case, rates: dict[str, dict[str, Any]], folder: Path, clip: dict[str, float], share: float
) -> dict[str, float]:
    """Returns the simulator's account of a real run of `case`.

    `clip` is the run that tells what checkpoints and restarts cost, `share` its weights over this one's.
    """
    from flava_ds.scaling.assumptions import of_host
    from flava_ds.scaling.failures import RATES, Recovery
    from flava_ds.scaling.simulator import Simulator, run_of

    config = case.config(folder, "simulated")
    setting = dataclasses.replace(setting_of_case(case, rates, config), total_steps=STEPS)
    gpu = setting.cluster.gpu
    recovery = Recovery(
        stands=clip["stands"] / share,
        writes=clip["writes"] / share,
        slower=0.0 if gpu.rates.cores > case.ranks else SLOWED,
        detection=0.0,
        restart=clip["detection and restart"],
    )
    run = run_of(setting, recovery, RATES["none"], of_host(gpu.rates, gpu.flops))
    mean = sum(cost.share * sum(cost.seconds.values()) for cost in run.costs)
    killed = KILL_AFTER * mean + KILL_AFTER // EVERY * recovery.cost
    run = dataclasses.replace(run, interval=EVERY * mean, failures=(killed,))
    outcomes = [Simulator(run, seed).simulate() for seed in range(20)]
    assert all(outcome.failures == 1 for outcome in outcomes)

    def average(*causes: str) -> float:
        return statistics.fmean(sum(outcome.lost[cause] for cause in causes) for outcome in outcomes)

    apart = ("lost work", "detection and restart")
    stood = recovery.stands * statistics.fmean(outcome.checkpoints for outcome in outcomes)
    rest = average(*(cause for cause in outcomes[0].lost if cause not in apart))
    return {
        "wall": statistics.fmean(outcome.wall for outcome in outcomes),
        "steps": rest - stood,  # a real run's log counts what the writer slows as steps, too
        "checkpoints": stood,
        **{cause: average(cause) for cause in apart},
    }


def parameters_of(case: Case, folder: Path) -> int:
    """Returns a case's trainable elements."""
    from flava_ds.scaling.captions import lengths_of
    from flava_ds.scaling.measure import measure

    config = case.config(folder, "parameters")
    return measure(config, lengths_of(config, None)).trainable


def simulate_all(folder: Path, rates: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs `demo` and `demo_clip` on one and two ranks, and simulates those of `demo`."""
    real = {(recipe, ranks): undisturbed_run(Case(recipe, recipe, ranks), folder)
            for ranks in (1, 2) for recipe in ("demo_clip", "demo")}  # fmt: skip
    sizes = [parameters_of(Case(recipe, recipe, 1), folder) for recipe in ("demo_clip", "demo")]
    return [
        {
            "ranks": ranks,
            "real": real["demo", ranks],
            "clip": real["demo_clip", ranks],
            "simulated": simulated_run(
                Case("demo", "demo", ranks), rates, folder, real["demo_clip", ranks], sizes[0] / sizes[1]
            ),
        }
        for ranks in (1, 2)
    ]
