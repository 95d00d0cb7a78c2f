"""Training and evaluation on the device of tests/pretend_gpu.py, in processes of their own, because torch
counts devices once in a process.

    python tests/training/pretend_gpu_runs.py train DEVICE RECIPE [OPTION...]    # by torchrun: on many ranks
    python tests/training/pretend_gpu_runs.py steps RECIPE...
    python tests/training/pretend_gpu_runs.py evaluate ... --device pretend:0           # of flava-ds
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")]
os.environ["DS_ACCELERATOR"] = "cpu"

import torch  # noqa: E402
from pretend_gpu import NAME, device, moved, pretend_gpu  # noqa: E402

device()


from flava_ds import build  # noqa: E402
from flava_ds.batch import Batch  # noqa: E402
from flava_ds.codebook.image_codebook import ImageCodebook  # noqa: E402
from flava_ds.config import Config  # noqa: E402
from flava_ds.processes import leave  # noqa: E402
from flava_ds.ranks import distributed  # noqa: E402
from flava_ds.recipes import resolve  # noqa: E402
from flava_ds.scaling.captions import full  # noqa: E402
from flava_ds.scaling.measure import step_of, teachers_of  # noqa: E402
from flava_ds.scaling.synthetic import batch_of  # noqa: E402
from flava_ds.training.engine import Engine  # noqa: E402
from flava_ds.training.task import fold_biases  # noqa: E402
from flava_ds.training.watcher import Watcher  # noqa: E402

SAMPLES = 16


@contextmanager
def world_of_the_device() -> Iterator[None]:
    """Gives the trainer the device where it would take a GPU, and DeepSpeed, too."""
    start, begin = distributed.start, Engine.__init__

    def start_there(timeout_s: int) -> Any:
        world = start(timeout_s)
        from deepspeed.accelerator import get_accelerator

        accelerator = get_accelerator()
        accelerator.device_name = lambda index=None: NAME if index is None else str(device())
        accelerator.current_device_name = lambda: str(device())
        return dataclasses.replace(world, device=device())

    def begin_there(engine: Engine, module: Any, *arguments: Any, **keywords: Any) -> None:
        moved(module)
        begin(engine, module, *arguments, **keywords)
        fold_biases(engine.module, True)  # as on a GPU

    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(build, "start", start_there))
        patched.enter_context(mock.patch.object(Engine, "__init__", begin_there))
        patched.enter_context(mock.patch.dict(build.GEMM_EDGE, {NAME: 64}))
        yield


class Waits(Watcher):
    """Notes where the host has waited in each step, its records and saves included."""

    def __init__(self, waits: Any) -> None:
        self.waits, self.steps = waits, []

    def on_start(self, first_step: int) -> None:
        self.waits.clear()

    def after_step(self, step: int, *, stopping: bool) -> None:
        self.steps.append(dict(self.waits))
        self.waits.clear()


def train(where: str, recipe: str, *options: str) -> None:
    """Trains in the working directory; rank 0 writes where it has waited into waits.json."""
    config = resolve(recipe, ["--name", where, "--logging.no-tensorboard", *options])
    with ExitStack() as stack:
        waits = {}
        if where == NAME:
            waits = stack.enter_context(pretend_gpu())
            stack.enter_context(world_of_the_device())
        trainer = build.build(config)
        trainer.watchers += (watch := Waits(waits),)
        assert trainer.fit() == 0
        assert {p.device.type for p in trainer.engine.module.parameters()} == {where}
    if trainer.world.is_main:
        Path("waits.json").write_text(json.dumps(watch.steps))


def task_of(config: Config) -> Any:
    """Returns the recipe's task as it is at the first step on a GPU, with its frozen networks."""
    task = config.model.build(config)
    task.train()
    fold_biases(task, True)
    if config.computes_image_codes:
        torch.manual_seed(0)
        task.frozen["codebook"] = ImageCodebook(config.codebook, decoder=False).requires_grad_(False).eval()
    return task


def batches_of(config: Config) -> Iterator[tuple[str, Batch]]:
    """Yields a batch of each source of a recipe, with noise for pictures."""
    torch.manual_seed(0)
    for name, source in config.drawn_sources.items():
        plan = config.model.plan(config, source)
        batch = batch_of(plan, name, full(12) if plan.tokenizer is not None else None, SAMPLES, 1)
        yield name, batch.each(lambda x: torch.randint_like(x, 256) if x.dtype == torch.uint8 else x)


def step(task: Any, batch: Batch, where: torch.device) -> torch.Tensor:
    """Takes a step forward and backward; returns the loss."""
    with torch.no_grad():
        of_step = [task.complete(batch)]
        for state in task.states.values():
            of_step = state.complete_step(of_step)
    loss = step_of(task, of_step[0], where)()
    loss.backward()
    return loss.detach()


def move_tensors(held: dict[str, Any]) -> None:
    """Moves the tensors of a dictionary, and of those in it, to the device."""
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            held[name] = value.to(device())
        elif isinstance(value, dict):
            move_tensors(value)


def compared(config: Config, batch: Batch) -> dict[str, Any]:
    """Returns how far a step on the device is from that on the CPU, and where the host has waited."""
    here = task_of(config)
    loss = step(here, batch, torch.device("cpu"))
    with pretend_gpu() as waits:
        there = task_of(config)
        for module in (there, *there.frozen.values(), *teachers_of(there)):
            moved(module)
        for state in there.states.values():
            move_tensors(vars(state))
        batch = batch.to(device())
        waits.clear()
        loss_there = step(there, batch, device())
        waited = dict(waits)
        pairs = [
            (p.grad, q.grad.cpu()) for p, q in zip(here.parameters(), there.parameters(), strict=True)
            if p.grad is not None
        ]  # fmt: skip
        apart = torch.stack([(ours - theirs).norm() for ours, theirs in pairs]).norm()
        return {
            "loss": abs(loss_there.item() / loss.item() - 1),
            "gradients": float(apart / torch.stack([ours.norm() for ours, _ in pairs]).norm()),
            "waits": waited,
        }


if __name__ == "__main__":
    # each leaves without the interpreter's exit, at which a thread of autograd aborted the process once
    if sys.argv[1] == "train":
        train(*sys.argv[2:])
        distributed.stop()
    elif sys.argv[1] == "evaluate":
        from flava_ds.cli import main

        with pretend_gpu():
            leave(main(sys.argv[1:]))
    else:
        for recipe in sys.argv[2:]:
            config = resolve(recipe, [])
            for source, batch in batches_of(config):
                print(json.dumps({"recipe": recipe, "source": source, **compared(config, batch)}), flush=True)
    leave(0)
