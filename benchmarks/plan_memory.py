"""Measures the tensors that real training steps hold on a CPU, beside the planner's forecast of them.

One of plan_validation.py's parts: every setting runs in processes of its own. An allocator in
place of torch's (counting_allocator.cpp, which needs a C++ compiler) counts the tensors of all threads, so
that the peak is exact.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts import on_ranks

ROOT = Path(__file__).parents[1]
BUCKET = 2_000_000
"""Elements of a gradient bucket: more than any tensor has, but too few to hide everything else."""
STEPS = 8
RECIPE = "demo"
SETTINGS = [(stage, ranks, 1) for ranks in (1, 2) for stage in (0, 1, 2, 3)]
SETTINGS += [(stage, ranks, 2) for ranks in (1, 2) for stage in (1, 2, 3)]
"""(ZeRO stage, ranks, micro-batches of a step); more than one are summed in fp32."""


def overrides(stage: int, turns: int, file: Path) -> list[str]:
    """Returns the options of a setting; stage 0 runs in fp32 only."""
    sizes = [f"--data.sources.{name}.global-batch-size=64" for name in ("pair", "image", "text")]
    quiet = ["--logging.every-steps", "1000", "--logging.no-tensorboard", "--checkpoint.every-steps", "0"]
    precision = ["--training.precision", "fp32" if stage == 0 else "bf16"]
    if turns > 1:
        precision += ["--training.gradient-accumulation-steps", str(turns), "--training.accumulate-in-fp32"]
    return [*sizes, *quiet, *precision, "--data.num-workers", "0", "--engine.deepspeed-config", str(file)]


def write_setting(folder: Path, stage: int) -> Path:
    """Writes a DeepSpeed JSON with small buckets."""
    settings = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text(encoding="utf-8"))
    if stage:
        settings["zero_optimization"] |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if stage == 3:
        settings["zero_optimization"] |= {"stage3_prefetch_bucket_size": BUCKET}
    path = folder / f"small_zero{stage}.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def measure_all(folder: Path) -> list[dict[str, Any]]:
    """Runs every setting and returns measured and forecast bytes."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.recipes.demo import DATA

    unpack(folder / DATA)
    counter = compile_counter(folder)
    rows = []
    for stage, ranks, turns in SETTINGS:
        file = write_setting(folder, stage)
        out = folder / f"out_{stage}_{ranks}_{turns}.json"
        on_ranks(ranks, folder, __file__, str(stage), str(turns), str(file), str(out), str(counter))
        rows.append(
            json.loads(out.read_text(encoding="utf-8")) | {"stage": stage, "ranks": ranks, "turns": turns}
        )
    return rows


def compile_counter(folder: Path) -> Path:
    """Compiles the counting allocator against this torch."""
    from torch.utils.cpp_extension import include_paths, library_paths

    library = folder / "counting_allocator.so"
    command = ["c++", "-O2", "-std=c++17", "-shared", "-fPIC", "-o", str(library)]
    command += [str(Path(__file__).with_name("counting_allocator.cpp"))]
    command += [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    subprocess.run([*command, "-lc10"], check=True)
    return library


def one_rank(stage: int, turns: int, file: Path, out: Path, library: Path) -> None:
    """On each rank: takes steps; rank 0 writes the peak beside the forecast."""
    import torch  # the counter needs its library  # noqa: F401

    from flava_ds.build import build
    from flava_ds.ranks.distributed import stop
    from flava_ds.recipes import resolve

    config = resolve(RECIPE, ["--name", f"memory{stage}", *overrides(stage, turns, file)])
    counter = ctypes.CDLL(str(library))
    counter.peak.restype = ctypes.c_int64
    counter.install()
    trainer = build(config)
    start = counter.peak()
    for step, batches in zip(range(STEPS), trainer.loader, strict=False):
        trainer.train_step(step, batches)
    most = counter.peak()
    kinds = sorted({trainer.loader.round_robin.source_at(step) for step in range(STEPS)})
    world, is_main = trainer.world.size, trainer.world.is_main
    trainer.recorder.close()
    stop()
    if is_main:
        forecast = forecast_bytes(config, world)
        found = {
            "measured": most,
            "start": start,
            "forecast": forecast["total"],
            "parts": forecast["parts"],
            "kinds": kinds,
        }
        out.write_text(json.dumps(found), encoding="utf-8")


def forecast_bytes(config: Any, world: int) -> dict[str, Any]:
    """Returns the planner's peak for the CPU's own operators, traced on real tensors of two sizes."""
    import dataclasses

    import torch
    from plan_rates import real_lengths

    from flava_ds.scaling import memory
    from flava_ds.scaling.assumptions import MIDDLE
    from flava_ds.scaling.measure import measure
    from flava_ds.scaling.zero import zero_of
    from flava_ds.training.engine_config import read_settings

    samples = {name: config.micro_batch_size(name, world) for name in config.drawn_sources}
    model = measure(
        config, real_lengths(config), device=torch.device("cpu"), samples=min(samples.values()) // 2
    )
    settings, path = read_settings(config.engine.deepspeed_config)
    training = config.training
    turns, fp32_sums = training.gradient_accumulation_steps, training.accumulate_in_fp32
    zero = zero_of(settings, Path(path), training.precision, turns, fp32_sums)
    none = dataclasses.replace(MIDDLE, context_gib=0.0, fragmentation=0.0)
    peak = memory.peak(model, zero, world, samples, none)
    return {"total": peak.total, "parts": dict(peak.parts) | {"at": f"{peak.name} of {peak.source}"}}


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:6]))
