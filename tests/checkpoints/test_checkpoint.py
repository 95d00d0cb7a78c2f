"""Saving and resuming in every stage, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from test_engine import everything, run_steps, stages_in
from toy import KINDS, Toy, full_weights, toy_config

from flava_ds.checkpoints import checkpoint, files
from flava_ds.checkpoints.contents import optimizer_name, read_state, sha256_of, weights_name
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import load_weights
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.views import Kind
from flava_ds.ranks.distributed import World, all_reduce_counts, start
from flava_ds.training.engine import Engine


def config_in(folder: str, stage: str, **training) -> Config:
    config = toy_config(stage, **training)
    return dataclasses.replace(
        config,
        name=Path(stage).stem,
        logging=LoggingConfig(run_directory=folder),
        checkpoint=CheckpointConfig(keep_last=2),
    )


def engine_of(config: Config, world: World, seed: int = 0) -> Engine:
    module = Toy(seed)
    return Engine(module, config, world)


def save(engine: Engine, config: Config, step: int, data: dict | None = None) -> Place:
    """Saves and waits until the checkpoint is there."""
    saver = Saver(engine, config)
    folder = saver.save(step, data or {})
    saver.finish()
    return folder


def save_and_resume(folder: str, cases: tuple[tuple[str, str, bool], ...]) -> list[dict]:
    """On every rank: differences between going on and resuming in another engine, after 4 of 9 steps.
    Training goes on while it is written.
    """
    world, results = start(60), []
    for stage, precision, asynchronous in cases:
        config = config_in(f"{folder}/{precision}", stage, precision=precision)
        config = dataclasses.replace(
            config, checkpoint=dataclasses.replace(config.checkpoint, asynchronous=asynchronous)
        )
        checkpoint.prepare(config, world)
        engine = engine_of(config, world)
        fresh = checkpoint.resume(engine, config)
        run_steps(engine, config, world, KINDS[:4])
        torch.manual_seed(77 + world.rank)
        weights = full_weights(engine)
        saver = Saver(engine, config)
        written = saver.save(4, {"source": {"epoch": 1, "jumps": []}})
        drawn = torch.rand(3)
        norms = run_steps(engine, config, world, KINDS[4:], first_step=4)
        saver.finish()
        exported = load_weights(written)
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
                "same": same_draw
                and norms == norms_again
                and ended.keys() == again.keys()
                and all(torch.equal(ended[k], again[k]) for k in ended),
                "exported": exported.keys() == weights.keys()
                and all(torch.equal(exported[k], weights[k]) for k in weights),
                "files": written.names(),
            }
        )
    return results


@pytest.mark.distributed
def test_resuming_is_bitwise_in_every_stage(run_ranks, tmp_path):
    stages = stages_in(tmp_path)
    cases = tuple((stage, "fp32", stage != "zero2") for stage in stages) + tuple(
        (stage, "bf16", True) for stage in (stages[1], stages[2], stages[5])
    )
    for results in run_ranks(save_and_resume, 2, str(tmp_path), cases):
        assert len(results) == len(cases)
        for result in results:
            assert result["fresh"] is None and result["resumed"][:2] == (
                4,
                {"source": {"epoch": 1, "jumps": []}},
            ), result
            assert result["same"] and result["exported"], result
            shards = [
                f"{kind}_0000{rank}.safetensors" for kind in ("optimizer", "weights") for rank in (0, 1)
            ]
            assert result["files"] == sorted(["config.json", "manifest.json", "state.json", *shards])


def resume_with_a_late_folder(folder: str) -> int:
    """On every rank: the step to go on from, when rank 1 does not see the latest checkpoint listed."""
    world, config = start(60), config_in(folder, "zero1")
    checkpoint.prepare(config, world)
    engine = engine_of(config, world)
    run_steps(engine, config, world, KINDS[:2])
    for step in (1, 2):
        latest = save(engine, config, step).name
    if world.rank == 1:
        names = Place.names
        Place.names = lambda place: [name for name in names(place) if name != latest]
    return checkpoint.resume(engine, config).step


@pytest.mark.distributed
def test_ranks_go_on_from_what_rank_0_finds(run_ranks, tmp_path):
    assert run_ranks(resume_with_a_late_folder, 2, str(tmp_path)) == [2, 2]


def refusals(folder: str) -> dict[str, str]:
    """On every rank: what each unusable checkpoint is refused with."""
    world = start(60)
    config = config_in(folder, "zero1")
    checkpoint.prepare(config, world)
    engine = engine_of(config, world)
    run_steps(engine, config, world, KINDS[:4])
    engine.module.fingerprints["codebook"] = "beef"
    written = save(engine, config, 4)
    said: dict[str, str] = {}

    def attempt(name: str, module: Toy | None = None) -> None:
        fresh = module or Toy()
        with pytest.raises(CheckpointError) as caught:
            checkpoint.resume(Engine(fresh, config, world), config)
        said[name] = str(caught.value)

    wider = Toy()
    wider.mim.decoder = torch.nn.Linear(12, 8)
    attempt("shape", module=wider)
    narrower = Toy()
    narrower.mim.dense = torch.nn.Linear(12, 12, bias=False)
    attempt("lacked", module=narrower)
    merged = Toy()
    everywhere = merged.users() | {"mim.dense.weight": frozenset({Kind.TEXT})}
    merged.users = lambda: everywhere
    attempt("group", module=merged)
    other = Toy()
    other.fingerprints["codebook"] = "f00d"
    attempt("codebook", module=other)
    for name, file in (("weights", weights_name(1)), ("moments", optimizer_name(1))):
        path = written.local / file
        intact = path.read_bytes()
        _change(world, path, intact[: len(intact) // 2])
        attempt(f"truncated {name}")
        _change(world, path, intact)
    _change(
        world, written.local / "state.json", json.dumps({**read_state(written), "world_size": 1}).encode()
    )
    _refresh_manifest(world, written)
    attempt("ranks")
    return said


def _change(world: World, path: Path, content: bytes) -> None:
    torch.distributed.barrier()
    if world.is_main:
        path.write_bytes(content)
    torch.distributed.barrier()


def _refresh_manifest(world: World, folder: Place) -> None:
    """Makes the manifest agree with files that were changed."""
    torch.distributed.barrier()
    if world.is_main:
        described = {
            name: {"size": folder.open(name).size, "sha256": sha256_of(folder.open(name))}
            for name in folder.names()
            if name != "manifest.json"
        }
        folder.write("manifest.json", json.dumps(described))
        files.point(folder.parent, folder.name)
    torch.distributed.barrier()


@pytest.mark.distributed
def test_unusable_checkpoints_are_refused_in_one_line_on_every_rank(run_ranks, tmp_path):
    for said in run_ranks(refusals, 2, str(tmp_path)):
        assert "'mim.decoder.weight' is [7, 12], but this configuration's model has [8, 12]" in said["shape"]
        assert "has 'mim.dense.bias', which the module of that name lacks" in said["lacked"]
        assert (
            "'mim.dense.weight' has had 2 updates and 'mlm.dense.weight' 1, but this configuration "
            "trains them as one group"
        ) in said["group"]
        assert "was trained with another codebook than codebook_weights names now; put" in said["codebook"]
        assert "weights_00001.safetensors is damaged" in said["truncated weights"]
        assert "optimizer_00001.safetensors is damaged" in said["truncated moments"]
        assert "does not agree with the checkpoint's state.json" in said["ranks"]


def block_weights(config: Config, world: World) -> None:
    """Puts a folder where rank 1 writes its file of weights at step 1: a file cannot be created there."""
    torch.distributed.barrier()
    if world.rank == 1:
        (files.staging(files.place_of(config.run_path, config), 1, world.size).local / weights_name(1)).mkdir(
            parents=True
        )
    torch.distributed.barrier()


def fill_the_disk_of_one_rank(folder: str) -> tuple[str, str, bool, bool]:
    """On every rank: what saving says when rank 1 cannot write, at once and at the next step, whether it left
    a checkpoint, and whether the next save works."""
    world, config = start(60), config_in(folder, "zero1")
    checkpoint.prepare(config, world)
    engine, said = engine_of(config, world), []
    run_steps(engine, config, world, KINDS[:1])
    block_weights(config, world)
    saver = Saver(engine, config)
    saver.save(1, {})
    with pytest.raises(CheckpointError) as refused:
        for _ in range(1000):  # as the trainer does at every step
            _, notes = all_reduce_counts(world, [], 0, 0, 0, int(saver.status), 0)
            saver.observe(notes)
            time.sleep(0.01)
    said.append(str(refused.value))
    block_weights(config, world)  # again: what a failed save leaves is removed
    saver.save(1, {})
    with pytest.raises(CheckpointError) as refused:
        saver.finish()
    said.append(str(refused.value))
    left = files.latest(saver.place) is not None
    torch.distributed.barrier()
    return *said, left, save(engine, config, 1).has("manifest.json")


@pytest.mark.distributed
def test_what_one_rank_cannot_write_is_one_error_on_all(run_ranks, tmp_path):
    for at_a_step, at_the_end, left, saved_later in run_ranks(fill_the_disk_of_one_rank, 2, str(tmp_path)):
        for said in (at_a_step, at_the_end):
            assert "cannot be written" in said and "weights_00001.safetensors" in said
        assert not left and saved_later


def prepare_on_a_full_disk(folder: str) -> list[str]:
    """What lies among the checkpoints after a start on a disk that an interrupted save has filled."""
    config = config_in(folder, "zero1")
    left = config.run_path / "checkpoints" / "step_00000003.tmp-1ranks"
    left.mkdir(parents=True)
    with suppress(OSError), (left / "weights_00000.safetensors").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    checkpoint.prepare(config, start(60))
    return [path.name for path in left.parent.iterdir()]


def test_a_disk_that_an_interrupted_save_has_filled_is_no_end(run_ranks, tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("needs a small disk of its own, which only root can mount")
    try:
        assert run_ranks(prepare_on_a_full_disk, 1, str(tmp_path)) == [[]]
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def without_room(folder: str) -> tuple[str, str]:
    """On every rank: what a run says whose config.json does not fit, and what is left of the earlier one."""
    world, config = start(60), config_in(folder, "zero1")
    checkpoint.prepare(config, world)
    path = config.run_path / files.CONFIG
    if world.is_main:
        path.write_text("earlier")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.record(config, world)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return str(caught.value), path.read_text()


@pytest.mark.distributed
def test_a_full_disk_at_the_start_is_one_line_on_every_rank(run_ranks, tmp_path):
    said = run_ranks(without_room, 2, str(tmp_path))
    assert said[0] == said[1] and "cannot be used ([Errno 27] File too large" in said[0][0]
    assert said[0][1] == "earlier"
