"""Host time of the operators on a GPU's path, measured on a CPU: Python and dispatch, not the GPU.

    python benchmarks/host_time.py [--calls N] [--rounds N]

Kernels are not launched: in this script, and nowhere else, triton's JITFunction.run does nothing. What is
left is what the host does until there: torch.library or an autograd function, casts, checks, the choice of
kernels, tensors for results. Triton's own launch and the driver's are missing, and the results are no
numbers. Each operator is called forward and backward on tensors of a few rows, so that plain matrix products
in it cost next to nothing; time inside the launching functions counts apart, since both ways call the same.

Counts per micro-step come from flava_base's step on the meta device. Times are CPU time of one thread, the
least of several rounds, in which the ways take turns. Writes benchmarks/results/host_time.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["FLAVA_KERNELS"] = "triton"
os.environ.pop("TRITON_INTERPRET", None)

import torch
from flava_kernels import OPS, autocast, checks, dispatch
from flava_kernels.bench.machine import version_of
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "host_time.json"
ROUNDS, BLOCKS = 5, 24
CASES = {
    "varlen_attention": "bias-to-16",
    "layer_norm": "37x64",
    "add_layer_norm": "37x64, bias of x",
    "linear_gelu": "1x8x16",
    "linear_cross_entropy": "7 rows, 97 classes",
    "info_nce": "5x3",
    "fuse_sequences": "empty-texts",
}
"""The operators of a step, each with a case of few rows."""

WAYS = {
    "torch.library": {"needs_custom_operator": lambda example: True},
    "ours": {},
    "bare": {"needs_custom_operator": lambda example: False, "use_triton": lambda *arguments: True},
}
"""What replaces functions of `dispatch`: for a custom operator; nothing, as in a GPU's eager step; and for an
autograd function around the launching functions that decides, casts and checks nothing, which cannot be had.
"""


class Launching:
    """Times what is inside the functions that launch kernels, and counts launches."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.launches = 0

    def watch(self) -> None:
        """Replaces the launch by nothing, and the functions around it by timed ones."""

        def run(kernel: JITFunction, *arguments: Any, **keywords: Any) -> None:
            self.launches += 1

        JITFunction.run = run
        for name in {op.kernels for op in OPS.values()}:
            module = importlib.import_module(name)
            for function in ("forward", "backward", "pack", "unpack"):
                if hasattr(module, function):
                    setattr(module, function, self._timed(getattr(module, function)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.thread_time() - begun

        return timed


def measure(name: str, calls: int, launching: Launching) -> dict[str, float]:
    """Returns microseconds of one call, forward and backward: outside and inside the launching functions.

    All calls, each with tensors of its own, are one graph with one backward pass, as in a step.
    """
    op = OPS[name]
    case = next(case for case in op.cases() if case.name == CASES[name])
    gc.disable()
    inputs = [case.inputs(torch.float32) for _ in range(calls)]
    wanted = [each[argument] for each in inputs for argument in case.differentiable]
    launching.seconds, launching.launches, begun = 0.0, 0, time.thread_time()
    results = [op.function(**each) for each in inputs]
    whole = time.thread_time() - begun
    flat = [x for some in results for x in (some if isinstance(some, tuple) else (some,))]
    flat = [result for result in flat if result.requires_grad]
    upstream = [torch.ones_like(result) for result in flat]
    begun = time.thread_time()
    torch.autograd.grad(flat, wanted, upstream)
    whole += time.thread_time() - begun
    gc.enable()
    return {
        "microseconds": round(1e6 * (whole - launching.seconds) / calls, 1),
        "launching_microseconds": round(1e6 * launching.seconds / calls, 1),
        "launches": launching.launches / calls,
    }


def measure_ways(rounds: int, calls: int, launching: Launching) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the least of several rounds: way -> operator -> its times. The ways take turns in every round,
    so that a slow minute of the machine meets all of them.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {way: {name: [] for name in CASES} for way in WAYS}
    for _ in range(rounds):
        for name, (way, replaced) in product(CASES, WAYS.items()):
            with contextlib.ExitStack() as stack:
                for function, other in replaced.items():
                    stack.enter_context(mock.patch.object(dispatch, function, other))
                if way == "bare":
                    for cast in ("like_linear", "like_layer_norm", "like_cat"):
                        stack.enter_context(mock.patch.object(autocast, cast, lambda *tensors: tensors))
                    for check in ("sequences", "labels"):
                        stack.enter_context(mock.patch.object(checks, check, lambda *a, **k: None))
                found[way][name].append(measure(name, calls, launching))
    return {
        way: {name: min(each, key=lambda of: of["microseconds"]) for name, each in names.items()}
        for way, names in found.items()
    }


def by_layers() -> Any:
    """Within this context blocks call their layers one by one."""
    from flava_ds.layers import transformer

    return mock.patch.object(transformer, "run_as_one_node", lambda *arguments: None)


def measure_block(way: str, launching: Launching) -> dict[str, float]:
    """Returns microseconds of a block of a transformer, forward and backward, launching functions included.

    `way` is "eager", layer by layer, "compiled", or "one node" as on a GPU, which host_step.py measures. Its
    products are of a few rows; between them stand all of the block's plain operators.
    """
    from flava_ds.batch import Packed
    from flava_ds.config.encoders import VisionEncoderConfig
    from flava_ds.layers.transformer import Transformer
    from flava_ds.training.compiling import compile_blocks
    from flava_ds.training.task import fold_biases

    shape = VisionEncoderConfig(
        hidden_size=64, num_hidden_layers=BLOCKS, num_attention_heads=2, intermediate_size=128
    )
    model, bounds = Transformer(shape), torch.tensor([0, 4, 8], dtype=torch.int32)
    fold_biases(model, True)  # as an engine does on a GPU
    if way == "compiled":
        compile_blocks(model, 0)
    with by_layers() if way == "eager" else contextlib.nullcontext():
        return _least(lambda hidden: model(Packed(hidden, bounds, 4)), launching)


def _least(run: Callable[[Any], Any], launching: Launching) -> dict[str, float]:
    """Returns microseconds and launches of one of BLOCKS blocks in the fastest of several rounds."""
    rounds, launches = [], 0.0
    for warm in range(-2, ROUNDS):
        gc.disable()
        hidden = torch.randn(8, 64, requires_grad=True)
        launching.launches, begun = 0, time.thread_time()
        run(hidden).sum().backward()
        if warm >= 0:
            rounds.append(time.thread_time() - begun)
            launches = launching.launches / BLOCKS
        gc.enable()
    return {"microseconds": round(1e6 * min(rounds) / BLOCKS, 1), "launches": launches}


def calls_of_a_step() -> dict[str, dict[str, int]]:
    """Returns, for each kind of step of flava_base, its operators' forward calls and its plain operators."""
    from flava_ds.recipes import resolve
    from flava_ds.scaling.captions import lengths_of
    from flava_ds.scaling.measure import measure as measure_recipe

    config = resolve("flava_base", [])
    work = measure_recipe(config, lengths_of(config, None))
    found = {}
    for kind in work.kinds.values():
        counts: Counter[str] = Counter()
        for operator in kind.operators:
            ours = operator.custom and not operator.name.endswith("_backward")
            counts[operator.name if ours else "backward" if operator.custom else "plain"] += operator.count
        found[kind.kind] = dict(counts)
    return found


def step_milliseconds(measured: dict[str, dict[str, float]], counts: dict[str, int]) -> float:
    """Adds up the calls of a micro-step."""
    calls = Counter({name.removesuffix("_forward"): count for name, count in counts.items()})
    return round(sum(calls[name] * measured[name]["microseconds"] for name in CASES) / 1e3, 2)


def main() -> None:
    """Measures both ways, and prints and writes what a micro-step costs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=300, help="of each operator in a round")
    parser.add_argument("--rounds", type=int, default=9, help="of which the fastest counts")
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # results that nobody writes may be anything
    dispatch.unavailable = lambda device_type: None
    checks.readable = lambda tensor: os.environ.get(checks.VARIABLE) == "1"  # as for tensors on a GPU
    launching = Launching()
    launching.watch()
    measured = measure_ways(options.rounds, options.calls, launching)
    blocks = {way: measure_block(way, launching) for way in ("eager", "compiled")}
    del os.environ["FLAVA_KERNELS"]
    steps = calls_of_a_step()
    versions = {"torch": torch.__version__, "triton": version_of("triton")}
    result = {**versions, "ways": measured, "blocks": blocks, "steps": steps}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in CASES:
        print(f"{name:22}", *(f"{way}: {measured[way][name]['microseconds']:8.1f} us" for way in WAYS))
    print(f"a block of a transformer, us: {blocks}")
    for kind, counts in steps.items():
        of_step = {way: step_milliseconds(measured[way], counts) for way in WAYS}
        before, after = of_step["torch.library"] - of_step["bare"], of_step["ours"] - of_step["bare"]
        print(f"{kind} micro-step, ms: {of_step}; above bare {before:.2f} and {after:.2f}")


if __name__ == "__main__":
    main()
