"""Going on with other ranks, another ZeRO stage, offloading or precision: the same numbers in fp32, and from
there the same curve.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_engine import reference
from toy import KINDS, Toy, full_weights, objective_counts, partition_everything, toy_batch, toy_config

from flava_ds.checkpoints import checkpoint, files
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import CheckpointReader
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import CheckpointConfig, Config, LoggingConfig
from flava_ds.families.flava.views import Kind
from flava_ds.optimizers.adamw import GatedAdamW
from flava_ds.ranks.distributed import World, start
from flava_ds.storage.tensor_files import TensorFile
from flava_ds.training import fragments
from flava_ds.training.engine import Engine

SAVED_AT = 4
MICRO_BATCHES = 2
"""Of a step, over all ranks: one each on two ranks, two on one."""


def topology(folder: str, stage: str, ranks: int, precision: str = "fp32") -> Config:
    """A run whose name says how it is split; zero3 keeps no small parameter whole."""
    path = f"{folder}/zero3_all.json" if stage == "zero3" else stage
    config = toy_config(path, gradient_accumulation_steps=MICRO_BATCHES // ranks, precision=precision)
    logging = LoggingConfig(run_directory=folder)
    return dataclasses.replace(
        config,
        name=f"{stage} {precision} on {ranks}",
        logging=logging,
        checkpoint=CheckpointConfig(keep_last=9),
    )


def train(engine: Engine, config: Config, world: World, steps: range) -> None:
    """Runs the toy's steps on the same global batches whatever the ranks."""
    for step in steps:
        kind = KINDS[step]
        batches = [toy_batch(kind, step, number, 0) for number in range(MICRO_BATCHES)]
        denominators = {
            name: torch.tensor(n / world.size) for name, n in objective_counts(engine.module, batches).items()
        }
        engine.begin(kind, config.learning_rate(step))
        for batch in batches[world.rank :: world.size]:
            engine.forward_backward(batch, denominators)
        engine.update()


def whole(engine: Engine) -> dict[str, torch.Tensor]:
    """DeepSpeed's own idea of the weights, and how many updates each has had."""
    counts = {
        f"updates/{name}": torch.tensor(count) for name, count in fragments.update_counts(engine).items()
    }
    return full_weights(engine) | counts


def stored(config: Config, step: int) -> dict[str, torch.Tensor]:
    """All numbers of a checkpoint, put together."""
    reader = CheckpointReader(files.place_of(config.run_path) / files.name_of(step))
    sizes = {name: torch.Size(shape).numel() for name, shape in reader.shapes.items()}
    return {
        f"{key}/{name}": reader.read(key, name, 0, size)
        for key in ("weight", *GatedAdamW.moments)
        for name, size in sizes.items()
    }


def write(folder: str, runs: tuple[tuple[str, str], ...]) -> list[str]:
    """On every rank: trains and saves each (stage, precision) on this many ranks; returns the runs, whose
    numbers lie in NAME.safetensors.
    """
    world, results = start(60), []
    for stage, precision in runs:
        config = topology(folder, stage, world.size, precision)
        checkpoint.prepare(config, world)
        module = Toy()
        engine = Engine(module, config, world)
        train(engine, config, world, range(SAVED_AT))
        saver = Saver(engine, config)
        saver.save(SAVED_AT, {})
        saver.finish()
        saved = whole(engine)
        if world.is_main:
            save_file(saved, f"{folder}/{config.name}.safetensors")
        results.append(config.name)
    return results


def read(folder: str, sources: list[str], stages: tuple[str, ...]) -> dict[tuple[str, str], dict]:
    """On every rank: loads each source into each stage on this many ranks, saves it again, and trains to the
    end.

    Returns, by (source, stage), which tensors differ at once, which differ in the second checkpoint, and how
    far the curve ends from that of plain AdamW.
    """
    world, results = start(60), {}
    expected = reference(toy_config(), "frozen", MICRO_BATCHES)
    for stage in stages:
        for source in sources:
            config, saved = topology(folder, stage, world.size), load_file(f"{folder}/{source}.safetensors")
            module = Toy(seed=1)
            engine = Engine(module, config, world)
            state = checkpoint.resume(engine, dataclasses.replace(config, name=source))
            assert state[:2] == (SAVED_AT, {})
            loaded = whole(engine)
            again = dataclasses.replace(config, name=f"{source} as {config.name}")
            saver = Saver(engine, again)
            saver.save(SAVED_AT, {})
            saver.finish()
            first, second = (
                stored(dataclasses.replace(config, name=source), SAVED_AT),
                stored(again, SAVED_AT),
            )
            train(engine, config, world, range(SAVED_AT, len(KINDS)))
            ended = full_weights(engine)
            results[source, config.name] = {
                "loaded": [name for name in saved if not torch.equal(saved[name], loaded[name])],
                "stored": [name for name in first if not torch.equal(first[name], second[name])],
                "tensors": len(first),
                "distance": max(float((ended[name] - expected[name]).abs().max()) for name in expected),
            }
    return results


@pytest.mark.distributed
@pytest.mark.slow
def test_any_topology_goes_on_from_any_other(run_ranks, tmp_path):
    folder, both = str(tmp_path), (("zero1", 2), ("zero3", 2), ("zero0", 1), ("zero2_offload", 1))
    partition_everything(tmp_path)
    sources = run_ranks(write, 2, folder, tuple((stage, "fp32") for stage, ranks in both if ranks == 2))[0]
    sources += run_ranks(write, 1, folder, tuple((stage, "fp32") for stage, ranks in both if ranks == 1))[0]
    counts = {
        name: int(value)
        for name, value in load_file(tmp_path / "zero1 fp32 on 2.safetensors").items()
        if name.startswith("updates/")
    }
    assert (
        counts["updates/mim.dense.weight"] == KINDS[:SAVED_AT].count(Kind.IMAGE) == 2
        and counts["updates/mlm.dense.weight"] == 1
    )
    assert counts["updates/image_encoder.gain"] == 3 and counts["updates/dead.weight"] == 0
    for ranks in (2, 1):
        for results in run_ranks(
            read, ranks, folder, sources, tuple(stage for stage, wanted in both if wanted == ranks)
        ):
            assert len(results) == 8
            for pair, result in results.items():
                assert result["loaded"] == [] and result["stored"] == [] and result["tensors"] > 100, pair
                assert result["distance"] < 1e-6, (pair, result)


def across_precision(folder: str, source: str, stage: str, precision: str) -> tuple[list[str], bool]:
    """On every rank: which fp32 numbers change when a run goes on in another precision, and whether the
    module has the precision's weights.
    """
    world = start(60)
    config, saved = (
        topology(folder, stage, world.size, precision),
        load_file(f"{folder}/{source}.safetensors"),
    )
    module = Toy(seed=1)
    engine = Engine(module, config, world)
    checkpoint.resume(engine, dataclasses.replace(config, name=source))
    loaded = whole(engine)
    rounded = all(
        torch.equal(p.detach(), loaded[name].to(p.dtype)) for name, p in engine.module.named_parameters()
    )
    return [name for name in saved if not torch.equal(saved[name], loaded[name])], rounded


@pytest.mark.distributed
def test_precision_may_change_and_the_fp32_numbers_stay(run_ranks, tmp_path):
    folder = str(tmp_path)
    partition_everything(tmp_path)
    run_ranks(write, 2, folder, (("zero3", "bf16"),))
    assert run_ranks(across_precision, 1, folder, "zero3 bf16 on 2", "zero1", "fp32") == [([], True)]
    run_ranks(write, 1, folder, (("zero0", "fp32"),))
    assert run_ranks(across_precision, 2, folder, "zero0 fp32 on 1", "zero2", "bf16") == [([], True)] * 2


def opens_of_a_resume(folder: str) -> tuple[int, int, bool]:
    """On every rank: how many headers of tensor files a resume reads, how often it opens such a file, and
    whether it leaves none open.
    """
    (name,) = write(folder, (("zero1", "fp32"),))
    world, config = start(60), topology(folder, "zero1", 2)
    assert config.name == name
    engine, headers, opened = Engine(Toy(seed=1), config, world), [], []
    began, open_file = TensorFile.__init__, Place.open

    def counted(file: TensorFile, opener, where: str) -> None:
        headers.append(where)
        began(file, opener, where)

    def counted_open(place: Place, name: str):
        opened.extend([name] if name.endswith(".safetensors") else [])
        return open_file(place, name)

    before = len(list(Path("/proc/self/fd").iterdir()))
    TensorFile.__init__, Place.open = counted, counted_open
    checkpoint.resume(engine, config)
    TensorFile.__init__, Place.open = began, open_file
    return len(headers), len(opened), len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.distributed
def test_a_resume_reads_every_header_once(run_ranks, tmp_path):
    """512 ranks have 1,024 files; each rank read the headers of all to check them, and again to restore."""
    for headers, opened, closed in run_ranks(opens_of_a_resume, 2, str(tmp_path)):
        assert headers == 4 and closed
        assert opened == headers + 2  # each rank has compared its share of the files before
