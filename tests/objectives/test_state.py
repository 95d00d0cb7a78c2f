"""Training states in every stage: a teacher against a plain average of the weights, a centre, skipped
updates, and going on elsewhere.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from test_engine import batches_of, stages_in
from torch import nn
from toy import KINDS, WIDTH, Toy, full_weights, objective_counts, partition_everything, toy_config

from flava_ds.checkpoints import checkpoint
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import Config, LoggingConfig
from flava_ds.errors import CheckpointError
from flava_ds.objectives.state import EmaTeacher, TrainingState, WeightAverage
from flava_ds.ranks.distributed import World, start
from flava_ds.training.engine import Engine
from flava_ds.training.whole_weights import WholeWeights
from flava_ds.watching.checksums import replicated

MOMENTUM, MICRO_BATCHES, SAVED_AT = 0.8, 2, 4
LASTING = 0.3
"""The average's momentum, which it reaches in the fourth step."""


class Centre(TrainingState):
    """A running mean of what an objective has seen, and how often it was renewed."""

    def __init__(self, width: int = 3) -> None:
        self.mean, self.renewed = torch.zeros(width), torch.zeros((), dtype=torch.int64)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "renewed": self.renewed}

    def after_update(self, step, engine, statistics) -> None:
        if "seen" in statistics:
            self.mean.lerp_(statistics["seen"] / statistics["terms"], 0.1)
            self.renewed.add_(1)


class TaughtToy(Toy):
    """A teacher follows an encoder, of which a parameter is frozen and a buffer moves, and a head; another
    follows one layer of it, and an average follows all.
    """

    def __init__(self, seed: int = 0, width: int = 3, teachers: bool = True) -> None:
        super().__init__(seed)
        self.image_encoder.cls_token.requires_grad_(False)
        self.image_encoder.register_buffer("shift", torch.zeros(WIDTH))
        network = nn.ModuleDict({"body": copy.deepcopy(self.image_encoder), "top": copy.deepcopy(self.mim)})
        both = EmaTeacher(
            network, {"body.": "image_encoder.", "top.": "mim."}, momentum=lambda step: MOMENTUM
        )
        layer = EmaTeacher(copy.deepcopy(self.mlm.dense), "mlm.dense.", momentum=lambda step: 0.5)
        taught = {"teacher": both, "layer": layer, "ema": WeightAverage(LASTING)}
        self.states = (taught if teachers else {}) | {"centre": Centre(width)}

    def users(self) -> dict:
        return {name: own for name, own in super().users().items() if name != "image_encoder.cls_token"}

    def statistics_of(self, state: str, totals: dict) -> dict:
        return totals


def topology(folder: str, stage: str, ranks: int, precision: str = "fp32") -> Config:
    """A run of the toy on the same global batches whatever the ranks."""
    config = toy_config(stage, gradient_accumulation_steps=MICRO_BATCHES // ranks, precision=precision)
    return dataclasses.replace(
        config, name=f"{Path(stage).stem} on {ranks}", logging=LoggingConfig(run_directory=folder)
    )


def move(engine: Engine, world: World, step: int, poisoned: bool = False) -> None:
    """One update, after which the states follow; `seen` is 1, 2, 3 for each step. A poisoned one has a NaN on
    rank 0.
    """
    kind = KINDS[step]
    batches = [batch for table in batches_of(kind, step, MICRO_BATCHES, 1) for batch in table]
    denominators = {
        name: torch.tensor(n / world.size) for name, n in objective_counts(engine.module, batches).items()
    }
    engine.begin(kind, 1e-2)
    for batch in batches[world.rank :: world.size]:
        if poisoned and world.is_main:
            batch["pixel_values"].fill_(float("nan")), batch["input_ids"].fill_(float("nan"))
        engine.forward_backward(batch, denominators)
    engine.update()
    engine.module.image_encoder.shift.fill_(step)
    seen = torch.tensor([1.0, 2.0, 3.0]) * (step + 1) * (float("nan") if poisoned else 1)
    engine.follow(step, {"seen": 4 * seen, "terms": torch.tensor(4.0)} if kind == "pair" or poisoned else {})


def followed(engine: Engine) -> dict[str, torch.Tensor]:
    """The teachers' weights, by the names of what they follow, and how much of the student each keeps."""
    states = engine.module.states
    both = {
        name.replace("body", "image_encoder").replace("top", "mim"): own
        for name, own in states["teacher"].copies().items()
    }
    return {**both, **{f"mlm.dense.{name}": own for name, own in states["layer"].copies().items()}}


def ema_of(engine: Engine) -> dict[str, torch.Tensor]:
    """The average of all weights, whole; of frozen ones, these themselves."""
    whole = {name: torch.zeros(shape) for name, shape in engine.shapes().items()}
    engine.gather("average.ema", whole)
    return whole


def averaged(before: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What one update makes of plain averages."""
    keep = {name: 0.5 if name.startswith("mlm") else MOMENTUM for name in before}
    return {name: keep[name] * old + (1 - keep[name]) * weights[name] for name, old in before.items()}


def everything(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies all states hold and the student's weights."""
    held = {
        **engine.state_tensors(),
        **followed(engine),
        **{f"own {k}": v for k, v in full_weights(engine).items()},
        **({f"ema {k}": v for k, v in ema_of(engine).items()} if "ema" in engine.module.states else {}),
    }
    return {name: tensor.clone() for name, tensor in held.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in a | b if not torch.equal(a[name], b[name])]


def follow_everywhere(folder: str, runs: tuple[tuple[str, str], ...]) -> dict[str, dict]:
    """On every rank: how far the teachers are from plain averages on the way, and what a poisoned step
    changed.
    """
    world, found = start(60), {}
    for stage, precision in runs:
        engine = Engine(TaughtToy(), topology(folder, stage, world.size, precision), world)
        weights = full_weights(engine)
        plain, distance = {name: weights[name] for name in followed(engine) if name in weights}, 0.0
        ema = {name: weights[name] for name in engine.module.users()}
        whole = WholeWeights(engine, TaughtToy, "ema")
        for step in range(len(KINDS) - 2):
            move(engine, world, step)
            plain = averaged(plain, full_weights(engine))
            keep = min(LASTING, (1 + step) / (10 + step))
            now = full_weights(engine)
            ema = {name: keep * own + (1 - keep) * now[name] for name, own in ema.items()}
            ours = followed(engine)
            # A half-precision teacher is its average, rounded: as far as one in 256 of an element.
            allowed = {
                name: 0.0 if precision == "fp32" else 2**-8 * mean.abs() for name, mean in plain.items()
            }
            distance = max(
                [distance, *(float(((ours[n] - mean).abs() - allowed[n]).max()) for n, mean in plain.items())]
            )
            assert torch.equal(ours["image_encoder.shift"].float(), torch.full((WIDTH,), float(step)))
        found_ema = ema_of(engine)
        distance = max(distance, *(float((found_ema[name] - own).abs().max()) for name, own in ema.items()))
        with whole.lent() as lent:
            assert lent is not engine.module and not lent.training
            for name, own in lent.named_parameters():
                assert torch.equal(own.view(-1), found_ema[name].to(own.dtype).view(-1)), name
        before = everything(engine)
        move(engine, world, len(KINDS) - 2, poisoned=True)
        changed = [name for name in differing(before, everything(engine)) if not name.endswith("shift")]
        moved = float(
            (ours["mim.decoder.weight"].float() - full_weights(engine)["mim.decoder.weight"]).abs().max()
        )
        compared = {name for name in replicated(engine) if name.startswith(("teacher.", "layer.", "centre."))}
        found[f"{stage} {precision}"] = {
            **{"distance": distance, "changed": changed, "moved": moved, "compared": len(compared)},
            **{"teacher": len(plain), "mean": engine.module.states["centre"].mean.tolist()},
            "type": ours["mim.decoder.weight"].dtype,
        }
    return found


@pytest.mark.distributed
def test_a_teacher_is_the_plain_average_in_every_stage_and_a_skipped_update_changes_no_state(
    run_ranks, tmp_path
):
    runs = [(stage, "fp32") for stage in stages_in(tmp_path)]
    runs += [("zero1", "bf16"), (partition_everything(tmp_path, "zero3_offload"), "bf16")]
    mean = torch.zeros(3)
    for step in (2, 6):  # the steps of pairs
        mean.lerp_(torch.tensor([1.0, 2.0, 3.0]) * (step + 1), 0.1)
    for found in run_ranks(follow_everywhere, 2, str(tmp_path), tuple(runs)):
        assert len(found) == len(runs) == 9
        for run, result in found.items():
            assert result["distance"] < 1e-6 and result["changed"] == [], (run, result)
            assert result["moved"] > 1e-3 and result["teacher"] == 12, (run, result)
            assert result["compared"] == 12 + 1 + 2, (
                "weights of both networks, the buffer, the centre's two tensors"
            )
            assert result["mean"] == mean.tolist() and result["type"] == (
                torch.bfloat16 if "bf16" in run else torch.float32
            ), run


def write(folder: str, stage: str) -> dict[str, torch.Tensor]:
    """On every rank: saves on the way and returns what all was then, and at the end of a run that went
    through.
    """
    world = start(60)
    config = topology(folder, stage, world.size)
    engine = Engine(TaughtToy(), config, world)
    checkpoint.prepare(config, world)
    for step in range(SAVED_AT):
        move(engine, world, step)
    saver = Saver(engine, config)
    saver.save(SAVED_AT, {}, spikes={"calm": True, "rollbacks": 0, "recent": {}, "streaks": {}})
    saver.finish()
    saved = everything(engine)
    for step in range(SAVED_AT, len(KINDS)):
        move(engine, world, step)
    return {"saved": saved, "ended": everything(engine)}


def read(folder: str, name: str, stages: tuple[str, ...]) -> dict[str, dict]:
    """On every rank: goes on from a checkpoint in each stage; returns what all was at once and at the end."""
    world, found = start(60), {}
    for stage in stages:
        config = dataclasses.replace(topology(folder, stage, world.size), name=name)
        engine = Engine(TaughtToy(seed=1), config, world)
        checkpoint.resume(engine, config)
        loaded = everything(engine)
        for step in range(SAVED_AT, len(KINDS)):
            move(engine, world, step)
        found[stage] = {"loaded": loaded, "ended": everything(engine)}
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("written_in", ["zero1", "zero3"])
def test_states_go_on_whatever_the_ranks_and_stages(run_ranks, tmp_path, written_in):
    zero3 = partition_everything(tmp_path)
    stage = {"zero1": "zero1", "zero3": zero3}[written_in]
    written = run_ranks(write, 2, str(tmp_path), stage)[0]
    name = topology(str(tmp_path), stage, 2).name
    for ranks, stages in ((2, ("zero1", zero3)), (1, ("zero0", "zero2_offload"))):
        for found in run_ranks(read, ranks, str(tmp_path), name, stages):
            for went_on_in, result in found.items():
                different = differing(written["saved"], result["loaded"])
                assert [key for key in different if not key.endswith("shift")] == [], (ranks, went_on_in)
                away = max(
                    float((result["ended"][key].double() - own.double()).abs().max())
                    for key, own in written["ended"].items()
                )
                assert away < 1e-6, (ranks, went_on_in, away)
                if (ranks, went_on_in) == (2, stage):
                    assert differing(written["ended"], result["ended"]) == []


def refuse(folder: str) -> list[str]:
    """Collects what is said of teachers that follow nothing, and of checkpoints without a run's states."""
    world, said = start(60), []
    toy = TaughtToy()
    toy.states = {"lost": EmaTeacher(copy.deepcopy(toy.image_encoder), "image_tower.", lambda step: 0.9)}
    with pytest.raises(AssertionError) as caught:
        Engine(toy, topology(folder, "zero1", world.size), world)
    said.append(str(caught.value))
    config = topology(folder, "zero1", world.size)
    checkpoint.prepare(config, world)
    saver = Saver(Engine(TaughtToy(teachers=False), config, world), config)
    saver.save(SAVED_AT, {}, spikes={"calm": True, "rollbacks": 0, "recent": {}, "streaks": {}})
    saver.finish()
    for other in (TaughtToy(), TaughtToy(teachers=False, width=4)):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.resume(Engine(other, config, world), config)
        said.append(str(caught.value))
    return said


def test_what_does_not_fit_is_refused(run_ranks, tmp_path):
    (said,) = run_ranks(refuse, 1, str(tmp_path))
    assert "'lost'" in said[0] and "'image_tower.cls_token'" in said[0] and "is not in the task" in said[0]
    assert "has no 'average.teacher' of 'image_encoder.first.bias'" in said[1] and "--name" in said[1]
    assert "training states: 'centre/mean' is [3], but this configuration's model has [4]" in said[2]
