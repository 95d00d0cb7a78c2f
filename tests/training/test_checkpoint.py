"""Saving and resuming in every stage, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_engine import everything, run_steps, stages_in
from toy import KINDS, Toy, toy_config

from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.errors import CheckpointError
from flava_ds.training import checkpoint, checkpoint_files
from flava_ds.training.distributed import World, start
from flava_ds.training.engine import Engine


def config_in(folder: str, stage: str, **training) -> Config:
    config = toy_config(stage, **training)
    return dataclasses.replace(config, name=Path(stage).stem, logging=LoggingConfig(run_directory=folder), checkpoint=CheckpointConfig(keep_last=2))


def engine_of(config: Config, world: World, seed: int = 0) -> Engine:
    module = Toy(seed)
    return Engine(module, module.parameter_kinds(), config, world)


def save_and_resume(folder: str, cases: tuple[tuple[str, str], ...]) -> list[tuple]:
    """On every rank: differences between going on and resuming in another engine, after 4 of 9 steps."""
    world, results = start(60), []
    for stage, precision in cases:
        config = config_in(f"{folder}/{precision}", stage, precision=precision)
        checkpoint.prepare(config, world)
        engine = engine_of(config, world)
        fresh = checkpoint.resume(engine, config)
        run_steps(engine, config, world, KINDS[:4])
        torch.manual_seed(77 + world.rank)
        written = checkpoint.save(engine, config, 4, {"source": {"epoch": 1}})
        drawn = torch.rand(3)
        weights = dict(engine.full_weights())
        exported = checkpoint.load_weights(written)
        norms = run_steps(engine, config, world, KINDS[4:], first_step=4)
        other = engine_of(config, world, seed=1)
        resumed = checkpoint.resume(other, config)
        same_draw = torch.equal(drawn, torch.rand(3))
        norms_again = run_steps(other, config, world, KINDS[4:], first_step=4)
        ended, again = everything(engine), everything(other)
        results.append(
            {
                "stage": stage,
                "fresh": fresh,
                "resumed": resumed,
                "same": same_draw and norms == norms_again and ended.keys() == again.keys() and all(torch.equal(ended[k], again[k]) for k in ended),
                "exported": exported.keys() == weights.keys() and all(torch.equal(exported[k], weights[k]) for k in weights),
                "files": checkpoint_files.files_of(written),
            }
        )
    return results


@pytest.mark.distributed
def test_resuming_is_bitwise_in_every_stage(run_ranks, tmp_path):
    stages = stages_in(tmp_path)
    cases = tuple((stage, "fp32") for stage in stages) + tuple((stage, "bf16") for stage in (stages[1], stages[2], stages[5]))
    for results in run_ranks(save_and_resume, 2, str(tmp_path), cases):
        assert len(results) == len(cases)
        for result in results:
            assert result["fresh"] is None and result["resumed"] == (4, {"source": {"epoch": 1}}), result
            assert result["same"] and result["exported"], result
            assert not [file for file in result["files"] if file.endswith(".py")]


def refusals(folder: str) -> dict[str, str]:
    """On every rank: what each unusable checkpoint is refused with; the flag file tells whether a pickle ran code."""
    world = start(60)
    config = config_in(folder, "zero1")
    checkpoint.prepare(config, world)
    engine = engine_of(config, world)
    run_steps(engine, config, world, KINDS[:2])
    written = checkpoint.save(engine, config, 2, {})
    said: dict[str, str] = {}

    def attempt(name: str, other: Config = config, module: Toy | None = None) -> None:
        fresh = module or Toy()
        with pytest.raises(CheckpointError) as caught:
            checkpoint.resume(Engine(fresh, fresh.parameter_kinds(), other, world), other)
        said[name] = str(caught.value)

    attempt("stage", dataclasses.replace(config, engine=dataclasses.replace(config.engine, deepspeed_config="zero2")))
    attempt("precision", dataclasses.replace(config, training=dataclasses.replace(config.training, precision="bf16")))
    wider = Toy()
    wider.mim.decoder = torch.nn.Linear(12, 8)
    attempt("shape", module=wider)
    shard = next(path for path in written.rglob("*model_states.pt"))
    intact = shard.read_bytes()
    _change(world, shard, intact[: len(intact) // 2])
    attempt("truncated")
    _change(world, shard, intact)
    state = json.loads((written / "state.json").read_text())
    _change(world, written / "state.json", json.dumps({**state, "world_size": 5}).encode())
    _refresh_manifest(world, written)
    attempt("ranks")
    _change(world, written / "state.json", json.dumps(state).encode())
    torch.distributed.barrier()
    if world.is_main:
        torch.save({"module": Payload(f"{folder}/ran")}, shard)
    _refresh_manifest(world, written)
    attempt("pickle")
    return said


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _change(world: World, path: Path, content: bytes) -> None:
    torch.distributed.barrier()
    if world.is_main:
        path.write_bytes(content)
    torch.distributed.barrier()


def _refresh_manifest(world: World, folder: Path) -> None:
    """Makes the manifest agree with what an attacker wrote."""
    torch.distributed.barrier()
    if world.is_main:
        described = checkpoint_files.describe(folder, checkpoint_files.files_of(folder))
        (folder / checkpoint_files.MANIFEST).write_text(json.dumps(described))
    torch.distributed.barrier()


@pytest.mark.distributed
def test_unusable_checkpoints_are_refused_in_one_line_on_every_rank(run_ranks, tmp_path):
    for said in run_ranks(refusals, 2, str(tmp_path)):
        assert "ZeRO stage 1 and this run has 2" in said["stage"] and "--initial-weights" in said["stage"]
        assert "precision fp32 and this run has bf16" in said["precision"]
        assert "'mim.decoder.weight' is [7, 12], but this configuration's model has [8, 12]" in said["shape"]
        assert "model_states.pt is damaged" in said["truncated"]
        assert "ranks 5 and this run has 2" in said["ranks"]
        assert "model_states.pt cannot be read safely" in said["pickle"] and "system" in said["pickle"]
    assert not (tmp_path / "ran").exists()


def fill_the_disk_of_one_rank(folder: str) -> tuple[str, bool, bool]:
    """On every rank: what a save says when rank 1 cannot write, whether it left a checkpoint, and whether the next save works."""
    world, config = start(60), config_in(folder, "zero1")
    checkpoint.prepare(config, world)
    engine, write = engine_of(config, world), checkpoint._save_generators
    run_steps(engine, config, world, KINDS[:1])

    def no_space(path: Path, world: World) -> None:
        raise OSError(28, "No space left on device", str(path))

    checkpoint._save_generators = no_space if world.rank == 1 else write
    with pytest.raises(CheckpointError) as refused:
        checkpoint.save(engine, config, 1, {})
    left = checkpoint_files.latest(config.run_path) is not None
    checkpoint._save_generators = write
    return str(refused.value), left, checkpoint.save(engine, config, 1, {}).is_dir()


@pytest.mark.distributed
def test_a_full_disk_on_one_rank_is_one_error_on_all(run_ranks, tmp_path):
    for said, left, saved_later in run_ranks(fill_the_disk_of_one_rank, 2, str(tmp_path)):
        assert "cannot be written" in said and "No space left on device" in said and not left and saved_later


def test_initial_weights_replace_what_they_name(tmp_path):
    module, other = Toy(0), Toy(1)
    save_file({"mim.dense.weight": other.mim.dense.weight.detach().clone(), "unknown": torch.ones(2)}, tmp_path / "some.safetensors")
    checkpoint.load_initial_weights(module, str(tmp_path / "some.safetensors"))
    assert torch.equal(module.mim.dense.weight, other.mim.dense.weight) and not torch.equal(module.mlm.dense.weight, other.mlm.dense.weight)
    save_file({"mim.dense.weight": torch.ones(3, 3)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match=r"'mim.dense.weight' is \[3, 3\]"):
        checkpoint.load_initial_weights(module, str(tmp_path / "wrong.safetensors"))
    save_file({"vision.weight": torch.ones(3, 3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="none of its 1 tensors"):
        checkpoint.load_initial_weights(module, str(tmp_path / "foreign.safetensors"))
