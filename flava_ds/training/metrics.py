"""Numbers of a run: JSON lines as the source of truth, TensorBoard beside them, one line on the console. The device is read once per line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flava_ds import config as configuration
from flava_ds.config import Config, ObjectivesConfig
from flava_ds.training.distributed import World, gather_objects

OBJECTIVES = tuple(field.name for field in dataclasses.fields(ObjectivesConfig))
"""All objective names in a fixed order, the same on every rank at every step."""


class Metrics:
    """Adds up steps and writes one line per `logging.every_steps`.

    Losses and accuracies of a line are means over all terms of all ranks since the last line; sums stay on the device until then.
    """

    def __init__(self, config: Config, world: World, gemm_rate: float, first_step: int) -> None:
        """`gemm_rate` is the FLOP/s of all ranks' devices together on plain matrix products."""
        self.config, self.world, self.gemm_rate = config, world, gemm_rate
        self._sums = {f"{name}/{what}": torch.zeros((), dtype=torch.float64, device=world.device) for name in OBJECTIVES for what in ("loss", "correct")}
        self._counts: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._samples, self._flops, self._wait_s, self._paused_s, self._steps = 0, 0.0, 0.0, 0.0, 0
        self._norms: dict[str, Tensor] = {}
        self._since = time.perf_counter()
        self._file, self._board = None, None
        if world.is_main:
            self._file = open_log(config, world, gemm_rate, first_step)
            if config.logging.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(config.run_path / "tensorboard"), purge_step=first_step or None)

    def add(self, sums: list[dict[str, Tensor]], counts: dict[str, int], samples: int, flops: float, wait_s: float, skipped: Counter[str]) -> None:
        """Takes in one optimizer step: sums per micro-batch and counts over all ranks, samples and FLOPs of this rank, seconds waited for data."""
        for part in sums:
            for name, value in part.items():
                if name in self._sums:
                    self._sums[name] += value
        self._counts.update(counts)
        self._skipped.update(skipped)
        self._samples, self._flops, self._wait_s, self._steps = self._samples + samples, self._flops + flops, self._wait_s + wait_s, self._steps + 1

    def add_gradient_norms(self, norms: dict[str, Tensor]) -> None:
        """Takes in each objective's gradient norm on the encoders; the next line shows the latest."""
        self._norms.update(norms)

    @contextmanager
    def paused(self) -> Any:
        """Leaves the time inside (a checkpoint, an evaluation) out of rates."""
        begun = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - begun

    def write(self, step: int, kind: str, source: str, lr: float, grad_norm: Tensor, skipped_updates: Tensor) -> dict[str, Any]:
        """Reduces what was added since the last line, writes the line on rank 0 and returns it; all ranks must call it together."""
        names = list(self._sums)
        values = torch.stack([*self._sums.values(), grad_norm.double(), skipped_updates.double()])
        reduced = values[: len(names)].clone()
        if self.world.size > 1:
            dist.all_reduce(reduced)
        norms = torch.stack([*self._norms.values()]).tolist() if self._norms else []
        *totals, norm, updates = torch.cat([reduced, values[len(names) :]]).tolist()  # the one wait for the device
        elapsed = max(1e-9, time.perf_counter() - self._since - self._paused_s)
        host = gather_objects(self.world, (self._samples, self._flops, self._wait_s, self._skipped))
        samples, flops, wait = (sum(part[i] for part in host) for i in range(3))
        line = {
            "step": step,
            "kind": str(kind),
            "source": source,
            "lr": lr,
            "grad_norm": norm,
            **self._means(dict(zip(names, totals, strict=True))),
            **{f"gradient_norm/{name}": value for name, value in zip(self._norms, norms, strict=True)},
            "samples_per_second": samples / elapsed,
            "seconds_per_step": elapsed / max(1, self._steps),
            "data_wait": wait / self.world.size / elapsed,
            "flops_per_second": flops / elapsed,
            "mfu": flops / elapsed / self.gemm_rate,
            "eta_s": (self.config.training.total_steps - step - 1) * elapsed / max(1, self._steps),
            "skipped_updates": int(updates),
            "skipped_samples": dict(sum((part[3] for part in host), Counter())),
        }
        self._reset()
        self._publish(line)
        return line

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _means(self, totals: dict[str, float]) -> dict[str, float]:
        """Turns sums into 'loss/<objective>' and 'accuracy/<objective>' for the objectives that had terms."""
        seen = [name for name in OBJECTIVES if self._counts[name] > 0]
        return {f"loss/{name}": totals[f"{name}/loss"] / self._counts[name] for name in seen} | {
            f"accuracy/{name}": totals[f"{name}/correct"] / self._counts[name] for name in seen
        }

    def _reset(self) -> None:
        """Starts the next line."""
        for value in self._sums.values():
            value.zero_()
        self._counts, self._skipped, self._norms = Counter(), Counter(), {}
        self._samples, self._flops, self._wait_s, self._paused_s, self._steps = 0, 0.0, 0.0, 0.0, 0
        self._since = time.perf_counter()

    def _publish(self, line: dict[str, Any]) -> None:
        """Writes a line to its three places, on rank 0. Non-finite numbers become null: JSON has none."""
        if self._file is None:
            return
        finite = {key: None if isinstance(value, float) and not abs(value) < float("inf") else value for key, value in line.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in line.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key, value, line["step"])
        show(line, self.config.training.total_steps)


def show(line: dict[str, Any], total_steps: int) -> None:
    """Prints one line for people; on a terminal it replaces the previous one."""
    losses = " ".join(f"{key.removeprefix('loss/')} {value:.3f}" for key, value in line.items() if key.startswith("loss/"))
    text = (
        f"step {line['step'] + 1}/{total_steps} | {losses} | {line['samples_per_second']:.1f} samples/s | data wait {100 * line['data_wait']:.0f}% | "
        f"{line['flops_per_second'] / 1e9:.1f} GFLOP/s = {100 * line['mfu']:.0f}% of GEMM rate | ETA {duration(line['eta_s'])}"
    )
    if line["skipped_samples"]:
        text += f" | skipped: {', '.join(f'{reason} {count}' for reason, count in line['skipped_samples'].items())}"
    if sys.stdout.isatty():
        last = line["step"] + 1 >= total_steps
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)


def duration(seconds: float) -> str:
    """Writes a time as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def open_log(config: Config, world: World, gemm_rate: float, first_step: int):
    """Opens log.jsonl for appending: a new header for a fresh run, or the old log without the lines that the resumed run will write again."""
    path = config.run_path / "log.jsonl"
    header, kept = describe_run(config, world, gemm_rate), []
    if first_step and path.is_file():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if _is_json(line)]
        kept = [line for line in lines[1:] if line["step"] < first_step]
        again = {key: header[key] for key in ("started", "versions", "git", "hardware", "config_sha256")}
        header = {**lines[0], "resumed": [*lines[0].get("resumed", []), {"step": first_step, **again}]}
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in (header, *kept)), encoding="utf-8")
    os.replace(temporary, path)
    return path.open("a", encoding="utf-8")


def describe_run(config: Config, world: World, gemm_rate: float) -> dict[str, Any]:
    """Returns the first line of a log: what ran, on what, from which source."""
    plain = configuration.to_dict(config)
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("flava_ds", "torch", "deepspeed", "triton")}},
        "config_sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest(),
        "hardware": {
            "device": device,
            "ranks": world.size,
            "cpu_cores": len(os.sched_getaffinity(0)),
            "threads_per_rank": torch.get_num_threads(),
            "gemm_flops_per_second": gemm_rate,
        },
        "git": git_state(),
        "config": plain,
    }


def version(distribution: str) -> str | None:
    """Returns an installed version without importing the package."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Returns the commit of the source and whether it was changed; None outside a repository."""
    try:
        ask = [subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10) for words in _GIT_QUESTIONS]
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": ask[0].stdout.strip(), "changed": bool(ask[1].stdout.strip())} if ask[0].returncode == 0 else None


_GIT_QUESTIONS = (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))


def _is_json(line: str) -> bool:
    """False for the half line that a killed run may leave at the end."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
