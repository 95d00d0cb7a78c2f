"""Full, unsharded weights of the model in training, for computation on one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from flava_ds.errors import ConfigError
from flava_ds.objectives.state import EmaTeacher, WeightAverage
from flava_ds.training.engine import Engine
from flava_ds.weightless import undrawn

GATHERED_TOGETHER = 32
"""Parameters gathered at a time."""


class WholeWeights:
    """Lends a model whose forward pass needs no other rank.

    In ZeRO 0 to 2 this is the trained module itself. In ZeRO-3 the module gathers parameters as it computes,
    so every rank would have to take part in every pass; the model lent is a copy that `build` makes once, as
    it is where an average of all weights is lent. It is kept in host memory and moved to the device while it
    is lent.
    """

    def __init__(self, engine: Engine, build: Callable[[], nn.Module], average: str | None = None) -> None:
        """`average` names a training state whose average is lent in place of the parts that it follows.

        Raises: ConfigError if there is none of that name.
        """
        self.engine = engine
        self._average = self._named(average)
        self._copy: nn.Module | None = None
        if engine.stage == 3 or isinstance(self._average, WeightAverage):
            dtype = next(engine.module.parameters()).dtype
            self._copy = undrawn(build).to("cpu", dtype).requires_grad_(False).eval()

    def _named(self, average: str | None) -> EmaTeacher | WeightAverage | None:
        if average is None:
            return None
        states = getattr(self.engine.module, "states", {})
        found = states.get(average)
        if not isinstance(found, EmaTeacher | WeightAverage):
            known = [name for name, own in states.items() if isinstance(own, EmaTeacher | WeightAverage)]
            raise ConfigError(
                f"evaluation.average is '{average}', but this run's running averages are "
                f"{', '.join(known) or 'none'}"
            )
        return found

    @contextmanager
    def lent(self) -> Iterator[nn.Module]:
        """Yields the model in evaluation mode. All ranks enter together; inside, each may do as it likes."""
        teacher = self._average if isinstance(self._average, EmaTeacher) else None
        with self._whole() as module, _averaged(module, teacher):
            yield module

    @contextmanager
    def _whole(self) -> Iterator[nn.Module]:
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
        """Copies every parameter, or its average, and buffer of the trained module, a few at a time."""
        import deepspeed

        theirs, mine = dict(self.engine.module.named_parameters()), dict(copy.named_parameters())
        names = list(theirs)
        for start in range(0, len(names), GATHERED_TOGETHER):
            some = names[start : start + GATHERED_TOGETHER]
            if isinstance(self._average, WeightAverage):
                self.engine.gather(self._average.key, {name: mine[name] for name in some})
                continue
            with deepspeed.zero.GatheredParameters([theirs[name] for name in some]):
                for name in some:
                    mine[name].copy_(theirs[name].view_as(mine[name]))
        for name, buffer in copy.named_buffers():
            buffer.copy_(self.engine.module.get_buffer(name))


@contextmanager
def _averaged(module: nn.Module, teacher: EmaTeacher | None) -> Iterator[None]:
    """Puts the parts of a teacher's network into a model, in the places of those that they follow."""
    if teacher is None:
        yield
        return
    replaced = []
    try:
        for own, followed in teacher.follows.items():
            parent, _, name = followed.rstrip(".").rpartition(".")
            place = module.get_submodule(parent)
            replaced.append((place, name, getattr(place, name)))
            setattr(place, name, teacher.network.get_submodule(own.rstrip(".")))
        yield
    finally:
        for place, name, student in replaced:
            setattr(place, name, student)
