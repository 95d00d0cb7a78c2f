"""Takes steps of a real engine and prints who stops the host for a GPU. test_engine.py starts it as a process
of its own, since ranks of the other tests have chosen the CPU when they imported DeepSpeed.

    python tests/training/waits_on_a_gpu.py STAGE PRECISION
"""

from __future__ import annotations

import contextlib
import json
import sys
from unittest import mock

import torch
from accelerator_stand_in import frames_in_training
from toy import KINDS, Toy, toy_batch, toy_config

from flava_ds.ranks.distributed import start
from flava_ds.training.engine import Engine


def waits(stage: str, precision: str) -> list[str]:
    """Names the functions that ask a GPU, a stream or an event to finish during steps of every kind. What
    waits without asking, such as reading a value, is an error.
    """
    world = start(60)
    config = toy_config(stage, precision=precision)
    module = Toy()
    engine = Engine(module, config, world)
    steps = [(kind, toy_batch(kind, step, 0, 0).to(world.device)) for step, kind in enumerate(KINDS[:8])]
    denominators = {name: torch.full((), 4.0, device=world.device) for name in Toy.weights}
    found: list[str] = []

    def take(first: int, last: int) -> None:
        for step, (kind, batch) in enumerate(steps[first:last], start=first):
            engine.begin(kind, config.learning_rate(step))
            engine.forward_backward(batch, denominators)
            engine.update()

    def counting(*_args: object, **_keywords: object) -> None:
        found.append(frames_in_training()[-1].name)

    take(0, 4)  # moments and communicators come with the first steps
    with contextlib.ExitStack() as watched:
        for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
            watched.enter_context(mock.patch.object(owner, "synchronize", counting))
        if world.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            watched.callback(torch.cuda.set_sync_debug_mode, "default")
        take(4, 8)
    assert bool(engine.applied)
    return found


if __name__ == "__main__":
    of_steps = waits(*sys.argv[1:])
    print(json.dumps({"device": "cuda" if torch.cuda.is_available() else "cpu", "waits": of_steps}))
