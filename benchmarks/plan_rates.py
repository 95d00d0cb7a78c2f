"""Measures what the cores of this machine reach, for the planner's forecasts of steps on a CPU.

One of plan_validation.py's parts. Rates are those of one core while one or two of them compute, in CPU time,
so that other processes count little. No step that plan_time.py forecasts is measured here: operators are
timed one by one inside steps of `demo` with other micro-batches, and what a step takes beyond its operators
is that of tiny batches of narrower and wider models.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config import Config
from flava_ds.scaling.assumptions import MIDDLE
from flava_ds.scaling.host_rates import CallRate

SIZES = (24, 160)
"""Micro-batches whose operators are timed."""
TINY = 8
WIDTHS = (64, 192, 448)
"""Widths of the models whose tiny steps show what a step takes beyond its operators."""
REPEATS = 4
PAYLOADS = (64, 4096, 65_536, 1 << 20, 4 << 20, 16 << 20, 48 << 20)
SAMPLED = 1024
"""Samples that the loader is timed on, of each source."""
TURNS = 30
"""Of the reweighting in `fitted_rate`; the weights settle within ten."""


def quiet_words(folder: Path, name: str) -> list[str]:
    """Returns the options of a run that writes next to nothing and reads its data itself."""
    words = ["--logging.run-directory", str(folder / "runs"), "--name", name, "--logging.every-steps", "1000"]
    words += ["--logging.no-tensorboard", "--checkpoint.every-steps", "0", "--checkpoint.no-resume"]
    return [*words, "--data.num-workers", "0"]


def batches_of(config: Config, size: int) -> list[str]:
    """Returns the options that give every source a global batch of `size`."""
    return [f"--data.sources.{name}.global-batch-size={size}" for name in config.data.sources]


def width_words(width: int) -> list[str]:
    """Returns the options of a `demo` of another width."""
    words = [f"--model.projection-dim={width}"]
    for part in ("image", "text", "multimodal"):
        words += [f"--model.{part}.hidden-size={width}", f"--model.{part}.intermediate-size={4 * width}"]
    return words


def real_lengths(config: Config) -> dict[str, Any]:
    """Returns the lengths of the texts that a run reads."""
    from flava_ds.scaling.captions import lengths_of, read_shards

    return {name: read_shards(config, name, config.data.sources[name].shards)
            for name in lengths_of(config, None)}  # fmt: skip


def timed_operators() -> dict[str, Any]:
    """Returns (name, bytes, FLOPs, seconds) of operators in steps of `demo`, the seconds between two of them,
    and the codebook's FLOP/s.
    """
    import torch

    from flava_ds.codebook.image_codebook import ImageCodebook
    from flava_ds.recipes import resolve
    from flava_ds.scaling.measure import completed, step_of
    from flava_ds.scaling.synthetic import batch_of
    from flava_ds.scaling.trace import Trace, trace_step

    config, cpu = resolve("demo", []), torch.device("cpu")
    task, lengths = config.model.build(config).to(torch.bfloat16).train(), real_lengths(config)
    codebook = ImageCodebook(config.codebook, decoder=False).requires_grad_(False).eval()
    task.frozen["codebook"] = codebook
    rows, convolved, spent, between, calls = [], 0.0, 0.0, 0.0, 0
    for name, source in config.drawn_sources.items():
        for size in SIZES:
            batch = batch_of(config.model.plan(config, source), name, lengths.get(name), size)
            completed(task, batch, 0.0)
            begun = time.thread_time()
            flops, whole = completed(task, batch, 0.0)
            convolved, spent = convolved + flops, spent + (time.thread_time() - begun) * bool(flops)
            traces: list[Trace] = [
                trace_step(task, step_of(task, whole, cpu), whole.tensors.values(), 0.0)
                for _ in range(REPEATS + 1)
            ]
            last = traces[-1].calls
            same = [t.calls for t in traces if [c.name for c in t.calls] == [c.name for c in last]]
            for number, call in enumerate(last):
                seconds = statistics.median(calls[number].seconds for calls in same)
                rows.append((call.name, call.bytes, call.flops, seconds))
                between -= seconds
            between, calls = between + plain_seconds(task, whole), calls + len(last)
    return {"operators": rows, "per_call": between / calls, "convolution": convolved / spent}


def plain_seconds(task: Any, batch: Any) -> float:
    """Returns the median CPU seconds of a forward and backward pass without DeepSpeed and the trainer."""
    import torch

    from flava_ds.scaling.measure import step_of

    taken = []
    for _ in range(REPEATS + 1):
        task.zero_grad(set_to_none=True)
        begun = time.process_time()
        step_of(task, batch, torch.device("cpu"))().backward()
        taken.append(time.process_time() - begun)
    return statistics.median(taken[1:])


def tiny_steps(width: int, folder: Path) -> dict[str, float]:
    """Returns by source what the median real step of TINY samples takes beyond its forward and backward pass
    and the codebook, in CPU seconds. A process can do so once.
    """
    import torch

    from flava_ds.build import build
    from flava_ds.recipes import resolve
    from flava_ds.scaling.synthetic import batch_of

    words = [*quiet_words(folder, f"tiny{width}"), *width_words(width)]
    config = resolve("demo", [*words, *batches_of(resolve("demo", []), TINY)])
    trainer = build(config)
    seconds: dict[str, list[float]] = {name: [] for name in config.drawn_sources}
    for step, batches in enumerate(trainer.loader):
        begun = time.process_time()
        trainer.train_step(step, batches)
        seconds[batches[0].source].append(time.process_time() - begun)
        if min(map(len, seconds.values())) == 8:
            break
    trainer.recorder.close()
    task, lengths = config.model.build(config).to(torch.bfloat16).train(), real_lengths(config)
    task.frozen["codebook"] = trainer.task.frozen["codebook"]
    found = {}
    for source, taken in seconds.items():
        plan = config.model.plan(config, config.drawn_sources[source])
        batch, completing = batch_of(plan, source, lengths.get(source), TINY), []
        for _ in range(REPEATS + 1):
            begun = time.process_time()
            with torch.no_grad():
                whole = task.complete(batch)
            completing.append(time.process_time() - begun)
        apart = statistics.median(completing[1:]) + plain_seconds(task, whole)
        found[source] = statistics.median(taken[2:]) - apart
    return found


def loader_seconds(recipe: str, folder: Path) -> dict[str, float]:
    """Returns the seconds in which the loader makes a sample of each source of a recipe."""
    from flava_ds.data.loader import StepLoader
    from flava_ds.recipes import resolve

    config = resolve(recipe, quiet_words(folder, "loader"))
    spent: dict[str, list[float]] = defaultdict(list)
    loader = StepLoader(config)
    batches: Iterator[Any] = iter(loader)
    for _ in range(SAMPLED // 16):
        begun = time.process_time()
        batch = next(batches)[0]
        spent[batch.source].append((time.process_time() - begun) / batch.size)
        if min((len(spent[name]) for name in config.drawn_sources), default=0) >= 5:
            break
    return {name: statistics.median(taken[1:]) for name, taken in spent.items()}


def collective_seconds() -> dict[str, list[tuple[float, float]]]:
    """On two ranks: returns the median seconds of gloo's collectives by payload.

    Each follows on some computing, as in a step: the ranks are then no longer quite together, their caches
    hold other things, and gloo's threads have to be woken.
    """
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    found: dict[str, list[tuple[float, float]]] = {"all_reduce": [], "all_gather": []}
    left, cold = torch.randn(512, 512, dtype=torch.bfloat16), torch.zeros(1 << 23)
    for payload in PAYLOADS:
        whole = torch.zeros(payload // 2, dtype=torch.bfloat16)
        part = whole[: len(whole) // dist.get_world_size()].clone()
        for name in found:
            taken = []
            for _ in range(14):
                dist.barrier()
                for _ in range(20):
                    left @ left
                cold.add_(1.0)
                whole.fill_(1.0)
                begun = time.perf_counter()
                if name == "all_reduce":
                    dist.all_reduce(whole)
                else:
                    dist.all_gather_into_tensor(whole, part)
                taken.append(time.perf_counter() - begun)
            found[name].append((float(payload), statistics.median(taken[2:])))
    return found


def one_process(what: str, folder: Path, number: int) -> Any:
    """Measures one thing in this process."""
    if what == "gloo":
        return collective_seconds()
    own = folder / f"process{number}"
    if what != "cores":
        return tiny_steps(int(what), own)
    found = timed_operators()
    loaders = {recipe: loader_seconds(recipe, own) for recipe in ("demo", "demo_clip")}
    return found | {"loader": loaders}


def run_beside(what: str, folder: Path, busy: int) -> list[Any]:
    """Measures in `busy` processes at once, each with a thread; returns what each has found."""
    from flava_ds.ranks.launch import free_port

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    together = {"WORLD_SIZE": str(busy), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    files = [folder / f"{what}_{busy}_{number}.json" for number in range(busy)]
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), what, str(folder), str(number), str(file)],
            cwd=folder,
            env=environment | (together | {"RANK": str(number)} if what == "gloo" else {}),
        )
        for number, file in enumerate(files)
    ]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise SystemExit(f"error: measuring {what} in {busy} processes ended with {statuses}")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def measure_rates(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the measured rates as plain values: number of busy cores -> HostRates.as_json().

    Its loader is by recipe.
    """
    [collectives, _] = run_beside("gloo", folder, 2)
    found = {}
    for busy in (1, 2):
        cores = run_beside("cores", folder, busy)
        tiny = {width: run_beside(str(width), folder, busy) for width in WIDTHS}
        found[str(busy)] = rates_of(cores, tiny, busy, collectives)
    return found


def rates_of(
    found: list[dict[str, Any]],
    tiny: dict[int, list[dict[str, float]]],
    busy: int,
    collectives: dict[str, Any],
) -> dict[str, Any]:
    """Fits the rates to what all processes have measured at once."""
    from flava_ds.scaling.host_rates import HostRates

    calls = defaultdict(list)
    for process in found:
        for name, moved, flops, seconds in process["operators"]:
            calls[name].append((moved, flops, seconds))
    operators = {name: call_rate(rows) for name, rows in calls.items()}
    plain = [row for rows in calls.values() if not any(flops for _, flops, _ in rows) for row in rows]
    rates = HostRates(
        busy=busy,
        cores=len(os.sched_getaffinity(0)),
        operators=operators,
        others=call_rate(plain),
        convolution_flops=statistics.fmean(process["convolution"] for process in found),
        beyond=CallRate(),
        per_call=statistics.fmean(process["per_call"] for process in found),
        collectives=collectives,
        loader={},
    )
    loader = {
        recipe: {name: statistics.fmean(process["loader"][recipe][name] for process in found) for name in own}
        for recipe, own in found[0]["loader"].items()
    }
    features, seconds = beyond_operators(rates, tiny)
    fixed, per_byte = map(float, fitted_rate(features, seconds))
    return rates.as_json() | {
        "beyond": {"fixed": fixed, "per_byte": per_byte, "per_flop": 0.0},
        "loader": loader,
    }


def fitted_rate(features: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Fits seconds = features @ x with x >= 0, by weights of 1 / expected seconds, so that totals agree.

    Calls of ten microseconds and of ten milliseconds are off by about the same share, and many small calls
    count as much as a few large ones.

    Shapes:
        features  [n, k]  k <= 3; the first column is 1
        seconds   [n]
        returns   [k]
    """
    floor = 1e-7 + 1e-3 * float(seconds.mean())
    weights, best = 1 / np.maximum(seconds, floor), np.zeros(features.shape[1])
    for _ in range(TURNS):
        best = _non_negative(features, seconds, weights)
        weights = 1 / np.maximum(features @ best, floor)
    return best


def _non_negative(features: np.ndarray, seconds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the non-negative least squares: the best of all subsets of columns whose solution is."""
    root = np.sqrt(weights)
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)
    found, least = np.zeros(features.shape[1]), np.inf
    columns = range(features.shape[1])
    for size in columns:
        for chosen in itertools.combinations(columns, size + 1):
            part = list(chosen)
            own = features[:, part] / scale[part] * root[:, None]
            solved = np.linalg.lstsq(own, seconds * root, rcond=None)[0]
            error = float(np.square(own @ solved - seconds * root).sum())
            if (solved >= 0).all() and error < least:
                least, found = error, np.zeros(features.shape[1])
                found[part] = solved / scale[part]
    return found


def call_rate(rows: Sequence[tuple[float, float, float]]) -> CallRate:
    """Fits the rate of one operator to (bytes, FLOPs, seconds) of its calls."""
    moved, flops, seconds = np.array(rows, dtype=float).T
    features = [np.ones_like(moved), moved] + ([flops] if flops.any() else [])
    return CallRate(*map(float, fitted_rate(np.stack(features, axis=1), seconds)))


def beyond_operators(rates: Any, tiny: dict[int, list[dict[str, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns what tiny steps take beyond their passes, with what may explain it.

    Shapes:
        features  [n, 2]  1, bytes of the update
        seconds   [n]
    """
    import dataclasses

    from flava_ds.recipes import resolve
    from flava_ds.scaling.hardware import this_machine
    from flava_ds.scaling.measure import measure
    from flava_ds.scaling.step_time import update_seconds
    from flava_ds.scaling.zero import Zero

    unit = dataclasses.replace(rates, beyond=CallRate(per_byte=1.0))  # so that an update's seconds are bytes
    machine = this_machine(unit, 1, 1.0)
    features, seconds = [], []
    for width in WIDTHS:
        config = resolve("demo", width_words(width))
        work = measure(config, real_lengths(config))
        for source, kind in work.kinds.items():
            moved = update_seconds(work, kind, Zero(1, "bf16"), machine, MIDDLE)
            for steps in tiny[width]:
                features.append((1.0, moved))
                seconds.append(max(1e-6, steps[source]))
    return np.array(features), np.array(seconds)


if __name__ == "__main__":
    what, folder, number, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    out.write_text(json.dumps(one_process(what, folder, number)), encoding="utf-8")
    os._exit(0)
