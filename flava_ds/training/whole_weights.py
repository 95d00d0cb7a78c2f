"""The weights of a model in training as one process can compute with them, whatever ZeRO has made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from flava_ds.training.engine import Engine

GATHERED_TOGETHER = 32
"""Parameters whose parts are gathered in one go."""


class WholeWeights:
    """Lends a model whose forward passes need no other rank.

    In ZeRO 0 to 2 that is the trained module itself. In ZeRO-3, whose module gathers its parts as it computes
    and so needs every rank in every pass, it is a copy, which `build` makes once: it waits in host memory,
    and on the device only while it is lent.
    """

    def __init__(self, engine: Engine, build: Callable[[], nn.Module]) -> None:
        self.engine = engine
        self._copy: nn.Module | None = None
        if engine.stage == 3:
            dtype = next(engine.module.parameters()).dtype
            self._copy = build().to("cpu", dtype).requires_grad_(False).eval()

    @contextmanager
    def lent(self) -> Iterator[nn.Module]:
        """Yields the model in evaluation mode; all ranks together, but what they do with it is each one's
        own.
        """
        if self._copy is None:
            module, training = self.engine.module, self.engine.module.training
            module.eval()
            try:
                yield module
            finally:
                module.train(training)
            return
        copy = self._copy.to(self.engine.world.device)
        self._fill(copy)
        try:
            yield copy
        finally:
            copy.to("cpu")

    @torch.no_grad()
    def _fill(self, copy: nn.Module) -> None:
        """Takes over every parameter and buffer of the trained module, a few at a time."""
        import deepspeed

        theirs, mine = dict(self.engine.module.named_parameters()), dict(copy.named_parameters())
        names = list(theirs)
        for start in range(0, len(names), GATHERED_TOGETHER):
            some = names[start : start + GATHERED_TOGETHER]
            with deepspeed.zero.GatheredParameters([theirs[name] for name in some]):
                for name in some:
                    mine[name].copy_(theirs[name].view_as(mine[name]))
        for name, buffer in copy.named_buffers():
            buffer.copy_(self.engine.module.get_buffer(name))
