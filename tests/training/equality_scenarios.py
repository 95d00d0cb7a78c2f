"""Runs of twenty round-robin steps of the real trainer in every setting, against one process in plain torch
over the same global batches.

The reference is written out: the whole batch at once, torch.optim.AdamW and torch's clipping, the contrastive
loss as two cross-entropies.

Weights, gradients, their reduction, clipping and the optimizer are in fp32, as trained. The arithmetic
between weights and loss is in fp64 unless a scenario says otherwise, because in fp32 its rounding hides what
is looked for: plain torch in fp32 is up to 1e-5 from itself in fp64 in single gradient tensors, since their
terms cancel, and AdamW turns the rounding noise of key biases, whose gradient is zero, into steps of full
size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import math
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from equality_batches import SIZE, STEPS, parts_of
from sample_batches import tiny_config
from torch import Tensor, nn
from toy import full_weights, partition_everything

from flava_ds.batch import Batch
from flava_ds.build import build_trainer
from flava_ds.checkpoints import checkpoint
from flava_ds.config import (
    CheckpointConfig,
    Config,
    EngineConfig,
    LoggingConfig,
    OptimizerConfig,
    TrainingConfig,
)
from flava_ds.config.schedules import CosineScheduleConfig
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.ranks.distributed import World, barrier, start
from flava_ds.training.engine import Engine
from flava_ds.training.task import StepOutput

CONTRASTIVE = "global_contrastive"
OBSERVED = frozenset({3, 4, 6, 10, 11, 12, 13, 19})
"""Steps whose gradients are compared tensor by tensor: all conditions and kinds, and pairs after steps that
left parameters idle.
"""

INITIALIZER_RANGE = 0.12
"""Gives weights of width 24 the effect that 0.02 has at width 768; with less, all features point one way and
contrastive gradients cancel.
"""


@dataclass(frozen=True)
class Scenario:
    """How one run is executed. Results must not depend on it; `idle` and `arithmetic` are the reference's,
    too.
    """

    stage: str = "zero1"
    accumulation: int = 1
    checkpointing: bool = False
    idle: str = "frozen"
    arithmetic: str = "fp64"


@dataclass(frozen=True)
class Record:
    """What a run did: losses by step and objective, gradient norms by step, gradients before clipping by
    observed step and parameter.
    """

    losses: list[dict[str, float]]
    norms: list[float]
    gradients: dict[int, dict[str, Tensor]]
    parameters: dict[str, Tensor]


@dataclass(frozen=True)
class Differences:
    """Relative differences from the reference, the largest of all.

    `losses` over steps and objectives, `norms` over steps. `gradients` over observed steps and tensors: the
    largest difference over the largest entry that the tensor has in any of these steps, because the ranks'
    parts can cancel to next to nothing in one of them. `parameters` at the end over tensors: the length of
    the difference over the tensor's, because AdamW divides each element by its own size, so a single one
    whose parts cancel is rounded as much as they are. `worst` names the tensors of both.
    """

    losses: float
    norms: float
    gradients: float
    parameters: float
    worst: tuple[str, str]


def scenario_config(scenario: Scenario, folder: Path, name: str = "run") -> Config:
    """Builds the configuration of a run: a tiny FLAVA, all six objectives, and clipping that most
    steps meet."""
    settings = (
        scenario.stage if "zero3" not in scenario.stage else partition_everything(folder, scenario.stage)
    )
    config = tiny_config(
        training=TrainingConfig(
            total_steps=STEPS,
            global_batch_size=SIZE,
            gradient_accumulation_steps=scenario.accumulation,
            precision="fp32",
            gradient_clipping=1.5,
            activation_checkpointing=scenario.checkpointing,
            idle_parameters=scenario.idle,
        ),
        optimizer=AdamWConfig(lr=1e-3, weight_decay=0.1, decay_norm_and_bias=False),
        schedule=CosineScheduleConfig(warmup_steps=4, min_lr=1e-4),
        engine=EngineConfig(deepspeed_config=settings, communication_timeout_s=60),
        checkpoint=CheckpointConfig(every_steps=0),
        logging=LoggingConfig(run_directory=str(folder / name), every_steps=1, tensorboard=False),
    )
    image, text = (
        dataclasses.replace(encoder, num_hidden_layers=layers)
        for encoder, layers in ((config.model.image, 1), (config.model.text, 2))
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image=image, text=text, initializer_range=INITIALIZER_RANGE),
    )


@contextlib.contextmanager
def arithmetic_in(precision: str) -> Iterator[None]:
    """With 'fp64', lets modules see their fp32 parameters widened, so that only weights and their gradients
    are rounded to fp32.
    """
    original = nn.Module.__getattr__

    def widened(module: nn.Module, name: str) -> object:
        value = original(module, name)
        return value.double() if isinstance(value, nn.Parameter) and value.dtype == torch.float32 else value

    nn.Module.__getattr__ = widened if precision == "fp64" else original
    try:
        yield
    finally:
        nn.Module.__getattr__ = original


def reference(scenario: Scenario, folder: Path) -> Record:
    """Trains in this process, in plain torch."""
    config = scenario_config(Scenario(idle=scenario.idle), folder)
    module = build_task(config)
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        plain_groups(parameters, config.optimizer),
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        foreach=False,
    )
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        with arithmetic_in(scenario.arithmetic):
            means = plain_means(module, *parts_of(step, config, 1))
            sum(module.objectives[name].weight * mean for name, mean in means.items()).backward()
        if scenario.idle == "zeros":
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if step in OBSERVED:
            gradients[step] = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in parameters.items()
            }
        norms.append(float(nn.utils.clip_grad_norm_(parameters.values(), config.training.gradient_clipping)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(step)
        optimizer.step()
        losses.append({name: float(mean.detach()) for name, mean in means.items()})
    return Record(
        losses, norms, gradients, {name: parameter.detach() for name, parameter in parameters.items()}
    )


def plain_groups(parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> list[dict]:
    """Exempts vectors, position tables, CLS and mask tokens and the logit scale from weight decay."""
    decayed = [p for name, p in parameters.items() if p.ndim > 1 and "position_embeddings" not in name]
    exempt = [p for name, p in parameters.items() if p.ndim < 2 or "position_embeddings" in name]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def plain_means(module: FlavaTask, batch: Batch) -> dict[str, Tensor]:
    """Computes each active objective's mean over its terms, zero where it has none; the contrastive one anew,
    from features.
    """
    means = {name: loss.sum / max(loss.count, 1) for name, loss in module.losses(batch).items()}
    if CONTRASTIVE in means:
        ours = module("features", batch)[CONTRASTIVE]
        scale = ours.shared["log_scale"].exp()
        logits, own = scale * ours.samples["image"] @ ours.samples["text"].T, torch.arange(batch.size)
        both = F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(
            logits.T, own, reduction="none"
        )
        means[CONTRASTIVE] = (
            (ours.constants["matched"] * both).sum() / 2 / max(batch["matched_rows"].shape[0], 1)
        )
    return means


class ObservedEngine(Engine):
    """Notes every gradient of the observed steps between the last backward pass and the update."""

    def __init__(self, module: nn.Module, config: Config, world: World) -> None:
        module.register_forward_hook(_loss_in_fp32)
        super().__init__(module, config, world)
        self.gradients: dict[int, dict[str, Tensor]] = {}
        self.step = 0

    def update(self) -> Tensor:
        """Notes, then updates."""
        from deepspeed.utils import safe_get_full_grad

        if self.step in OBSERVED:
            found = {
                name: safe_get_full_grad(parameter) for name, parameter in self.module.named_parameters()
            }
            shapes = self.shapes()
            self.gradients[self.step] = {
                name: torch.zeros(shapes[name]) if g is None else g.detach().clone()
                for name, g in found.items()
            }
        self.step += 1
        return super().update()


def _loss_in_fp32(_: nn.Module, __: object, output: object) -> object:
    """Gives the engine a loss of the dtype that it always gets."""
    return dataclasses.replace(output, loss=output.loss.float()) if isinstance(output, StepOutput) else output


@dataclass(frozen=True)
class Parts:
    """A loader: this rank's micro-batches of every step."""

    config: Config
    world: World

    def __iter__(self) -> Iterator[list[Batch]]:
        micro_steps = self.config.training.gradient_accumulation_steps
        for step in range(STEPS):
            yield parts_of(step, self.config, self.world.size * micro_steps)[self.world.rank * micro_steps :][
                :micro_steps
            ]

    def go_back(self, step: int, failed: int) -> None:
        raise AssertionError("no test of these diverges")

    def progress(self, step: int) -> dict[str, float]:
        """Returns no fields for the log: there are no sources."""
        return {}

    def steps_left(self, step: int) -> dict[str, float]:
        """Returns none, for the same reason."""
        return {}


def run(scenario: Scenario, folder: Path, world: World) -> Record:
    """Trains with the real trainer; losses and norms are what it logged."""
    name = "_".join(map(str, (world.size, *dataclasses.astuple(scenario))))
    config = scenario_config(scenario, folder, name)
    checkpoint.prepare(config, world)
    engine = ObservedEngine(build_task(config), config, world)
    trainer = build_trainer(config, engine, Parts(config, world), 0)
    with contextlib.redirect_stdout(io.StringIO()), arithmetic_in(scenario.arithmetic):
        for step, batches in enumerate(trainer.loader):
            trainer.train_step(step, batches)
    trainer.recorder.close()
    barrier(world)  # all ranks read what rank 0 has written
    weights = full_weights(engine)
    lines = [json.loads(line) for line in (config.run_path / "log.jsonl").read_text().splitlines()[1:]]
    losses = [
        {key.removeprefix("loss/"): value for key, value in line.items() if key.startswith("loss/")}
        for line in lines
    ]
    return Record(losses, [line["grad_norm"] for line in lines], engine.gradients, weights)


def write_references(scenarios: Iterable[Scenario], folder: Path) -> Path:
    """Writes what the scenarios have to be compared with into a file; as arguments of processes, so many
    tensors would not pass.
    """
    different = dict.fromkeys((scenario.idle, scenario.arithmetic) for scenario in scenarios)
    path = folder / "references.pickle"
    path.write_bytes(
        pickle.dumps(
            {
                (idle, arithmetic): reference(Scenario(idle=idle, arithmetic=arithmetic), folder)
                for idle, arithmetic in different
            }
        )
    )
    return path


def read_references(path: Path) -> dict[tuple[str, str], Record]:
    """Reads what `write_references` wrote: runs by `idle` and `arithmetic`."""
    return pickle.loads(path.read_bytes())


def compare_all(scenarios: Sequence[Scenario], references: Path, folder: Path) -> list[Differences]:
    """On every rank: runs one scenario after the other and compares it with its reference."""
    world, expected = start(60), read_references(references)
    # ranks that wait for each other are nothing to warn of here
    logging.getLogger("flava_ds").setLevel(logging.ERROR)
    return [
        compare(run(scenario, folder, world), expected[scenario.idle, scenario.arithmetic])
        for scenario in scenarios
    ]


def compare(run: Record, reference: Record) -> Differences:
    """Compares two runs. An objective without terms is logged by neither; the reference has a zero there."""
    assert (
        len(run.losses) == len(reference.losses) == STEPS
        and run.gradients.keys() == reference.gradients.keys() == OBSERVED
    )
    losses = []
    for ours, theirs in zip(run.losses, reference.losses, strict=True):
        assert theirs.keys() >= ours.keys() and all(theirs[name] == 0 for name in theirs.keys() - ours.keys())
        losses += [over(abs(ours[name] - theirs[name]), theirs[name]) for name in ours]
    norms = [
        over(abs(ours - theirs), theirs) for ours, theirs in zip(run.norms, reference.norms, strict=True)
    ]
    assert run.parameters.keys() == reference.parameters.keys()
    scales = {
        name: max(largest(gradients[name]) for gradients in reference.gradients.values())
        for name in reference.parameters
    }
    gradients = max(
        (over(largest(run.gradients[step][name] - theirs), scales[name]), f"{name} at step {step}")
        for step in OBSERVED
        for name, theirs in reference.gradients[step].items()
    )
    parameters = max(
        (over(length(run.parameters[name] - theirs), length(theirs)), name)
        for name, theirs in reference.parameters.items()
    )
    return Differences(max(losses), max(norms), gradients[0], parameters[0], (gradients[1], parameters[1]))


def largest(tensor: Tensor) -> float:
    """Returns the largest absolute value."""
    return float(tensor.abs().max())


def length(tensor: Tensor) -> float:
    """Returns the Euclidean norm, computed in fp64."""
    return float(tensor.double().norm())


def over(difference: float, scale: float) -> float:
    """Divides; no difference is none of zero, too."""
    return difference and (difference / scale if scale else math.inf)
