"""Host time of a whole step of flava_base on a GPU's path, measured on a CPU: Python, autograd and hooks.

    python benchmarks/host_step.py [--rounds N]

host_time.py times our operators one by one; this takes whole steps of the engine, with the depth of
flava_base, its objectives and ZeRO-1 in bf16, on two pairs. Our kernels are chosen as on a GPU and, as there,
their launches do nothing, so neither Triton's launch nor the driver's is in it, and the results are no
numbers. torch's own operators do compute, on a few rows and in narrow layers. How much that is, several
widths tell: a line through the times, at a width of zero, is the host's part, and the narrowest width bounds
it from above.

The same module without the engine shows what DeepSpeed adds, `zero1_no_overlap` what its hooks on parameters
take of that, and steps whose blocks call their layers one by one what running a block as one node of autograd
saves. Times are CPU time of one thread, the least of
several steps. They depend on the machine and on what else runs on it. So what host_time.py measured, a block
of a transformer and the step's operators one by one, is measured again in between: the ratio of two blocks
is that of two machines. Writes benchmarks/results/host_step.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

from host_time import CASES, ROOT, Launching, by_layers, calls_of_a_step, measure, measure_block

RESULT = ROOT / "benchmarks" / "results" / "host_step.json"
WIDTHS = (24, 60, 96)
WHO = ("layers", "engine", "no_overlap", "module")
WARM = 3
NARROW = {
    "model.image.image-size": 32,
    "model.projection-dim": 32,
    "data.vocabulary": ROOT / "flava_ds" / "demo" / "vocab.txt",
    "model.text.vocab-size": 4096,
    "codebook.image-size": 16,
    "codebook.vocab-size": 64,
    "codebook.hidden-size": 16,
    "codebook-weights": "random",
    "training.global-batch-size": 2,
    "objectives.mim.num-masked-patches": 2,
    "objectives.mmm-image.num-masked-patches": 2,
    "objectives.mim.min-patches-per-block": 1,
    "objectives.mmm-image.min-patches-per-block": 1,
}
"""Few rows and classes; the depth stays."""


def narrow(width: int) -> Any:
    """Returns flava_base with layers of `width`."""
    from flava_ds.recipes import resolve

    options = dict(NARROW)
    for encoder in ("image", "text", "multimodal"):
        options |= {
            f"model.{encoder}.hidden-size": width,
            f"model.{encoder}.num-attention-heads": 12,
            f"model.{encoder}.intermediate-size": width,
        }
    return resolve(
        "flava_base", [word for name, value in options.items() for word in (f"--{name}", str(value))]
    )


def pairs(config: Any) -> Any:
    """Returns a batch of two pairs with their codes."""
    import torch

    from flava_ds.scaling.captions import full
    from flava_ds.scaling.synthetic import batch_of

    batch = batch_of(config.model.plan(config, config.data.sources["pmd"]), "pmd", full(5), 2)
    return batch.having(image_codes=torch.randint(0, 64, (2, config.model.num_patches)))


def timed(parts: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the ms of each part of a step, which follow each other."""
    steps = []
    for _ in range(WARM + rounds):
        gc.collect()
        gc.disable()
        step = {}
        for name, run in parts.items():
            begun = time.thread_time()
            run()
            step[name] = time.thread_time() - begun
        steps.append(step)
        gc.enable()
    return {part: 1e3 * min(step[part] for step in steps[WARM:]) for part in parts}


def of_engine(config: Any, batch: Any, world: Any, rounds: int) -> dict[str, float]:
    """Returns the ms of an engine's step by part."""
    from flava_ds.training.engine import Engine
    from flava_ds.training.task import fold_biases

    engine = Engine(config.model.build(config), config, world)
    fold_biases(engine.module, True)  # as on a GPU
    denominators, backward = whole_counts(engine.module, batch), []
    inner = engine.deepspeed.backward

    def timed_backward(*arguments: Any, **keywords: Any) -> None:
        begun = time.thread_time()
        inner(*arguments, **keywords)
        backward.append(time.thread_time() - begun)

    def forward_and_backward() -> None:
        engine.begin(batch.kind, 1e-4, 0)
        engine.forward_backward(batch, denominators)

    engine.deepspeed.backward = timed_backward
    times = timed({"forward": forward_and_backward, "update": engine.update}, rounds)
    times["backward"] = 1e3 * min(backward[WARM:])
    return times | {"forward": times["forward"] - times["backward"]}


def of_module(config: Any, batch: Any, rounds: int) -> dict[str, float]:
    """Returns the ms of the same passes without the engine."""
    import torch

    from flava_ds.training.task import fold_biases

    module, losses = config.model.build(config).to(torch.bfloat16), []
    fold_biases(module, True)
    denominators = whole_counts(module, batch)

    def forward() -> None:
        losses[:] = [module("step", batch, denominators, None).loss]

    def backward() -> None:
        module.zero_grad()
        losses[0].backward()

    return timed({"forward": forward, "backward": backward}, rounds)


def whole_counts(task: Any, batch: Any) -> dict[str, Any]:
    """Returns the denominators of a step of one micro-batch on one rank."""
    import torch

    return {name: torch.tensor(float(max(count, 1))) for name, count in task.counts(batch).items()}


def step_times(width: int, world: Any, rounds: int, launching: Launching) -> dict[str, Any]:
    """Returns the ms of an engine's step, of one by layers, of one without hooks on parameters, and of the
    module's alone, by part, and the launches of one.
    """
    config = narrow(width)
    batch = pairs(config)
    launching.launches = 0
    engine = of_engine(config, batch, world, rounds)
    launches = launching.launches / (WARM + rounds)
    with by_layers():
        layers = of_engine(config, batch, world, rounds)
    settings = dataclasses.replace(config.engine, deepspeed_config="zero1_no_overlap")
    alike = {
        "layers": layers,
        "engine": engine,
        "no_overlap": of_engine(dataclasses.replace(config, engine=settings), batch, world, rounds),
        "module": of_module(config, batch, rounds),
    }
    rounded = {who: {part: round(ms, 2) for part, ms in times.items()} for who, times in alike.items()}
    return {"width": width, "launches": launches, **rounded}


def at_zero(rows: list[dict[str, Any]], who: str, part: str) -> float:
    """Returns where a line through the times of all widths begins."""
    widths, times = [row["width"] for row in rows], [row[who][part] for row in rows]
    _, begin = statistics.linear_regression(widths, times)
    return round(min(begin, *times), 2)


def operator_times(counts: dict[str, int], launching: Launching) -> dict[str, float]:
    """Returns the ms of the step's operators called one by one, and the microseconds of a block, just now."""
    import torch

    calls = Counter({name.removesuffix("_forward"): count for name, count in counts.items()})
    ours = 0.0
    for name in CASES:
        took = measure(name, 30, launching)
        ours += calls[name] * (took["microseconds"] + took["launching_microseconds"])
    few, rounds = torch.ones(8, 64), []
    for _ in range(20):
        begun = time.thread_time()
        for _ in range(300):
            few.mul(few)
        rounds.append((time.thread_time() - begun) / 300)
    return {
        "ours_ms": round(ours / 1e3, 2),
        "plain_ms": round(1e3 * min(rounds) * counts["plain"], 2),
        "block_us": measure_block("eager", launching)["microseconds"],
        "one_node_us": measure_block("one node", launching)["microseconds"],
    }


def main() -> None:
    """Takes steps at every width, and prints and writes where their time goes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="steps at each width")
    rounds = parser.parse_args().rounds

    import torch
    from flava_kernels import attention, checks, dispatch
    from flava_kernels.bench.machine import device_name, version_of
    from flava_kernels.triton_ops import attention as attention_kernels

    from flava_ds.ranks.distributed import start

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # results that nobody writes may be anything
    del os.environ["FLAVA_KERNELS"]
    counts = calls_of_a_step()["pair"]
    os.environ["FLAVA_KERNELS"] = "triton"
    launching = Launching()
    launching.watch()
    world = start(60)
    heads = tuple(width // 12 for width in WIDTHS)
    tile = attention_kernels.Tile(16, 16, 1, 1)
    on_a_gpu = (
        (dispatch, "unavailable", lambda device_type: None),
        (checks, "readable", lambda tensor: False),
        (attention, "HEAD_SIZES", (*heads, *attention.HEAD_SIZES)),
        (attention_kernels, "tile_of", lambda **_: tile),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, value in on_a_gpu:
            stack.enter_context(mock.patch.object(owner, name, value))
        rows, units = [], [operator_times(counts, launching)]
        for width in WIDTHS:
            rows.append(step_times(width, world, rounds, launching))
            units.append(operator_times(counts, launching))
    operators = {name: min(unit[name] for unit in units) for name in units[0]}
    host = {who: {part: at_zero(rows, who, part) for part in rows[0][who]} for who in WHO}
    result = {
        "machine": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "rounds": rounds,
        "widths": rows,
        "host": host,
        "operators": operators,
        "counts": counts,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)
    print(f"at a width of zero, ms: {host}; its operators one by one: {operators}")


if __name__ == "__main__":
    main()
