"""Traces of steps as a viewer reads them, and what is refused."""

import dataclasses
import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch
from test_metrics import speak_while
from test_trainer import toy_trainer
from toy import toy_config

from flava_ds.config import LoggingConfig
from flava_ds.errors import ConfigError
from flava_ds.ranks.distributed import World
from flava_ds.watching.profiling import StepProfiler, check_device, write_snapshot


def traced(folder: str) -> tuple[int, str]:
    return speak_while(lambda: toy_trainer(folder, profile_steps=(4, 2), profile_all_ranks=True).fit())


def kernels_in(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return [event["name"] for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


@pytest.mark.distributed
def test_the_steps_asked_for_are_written_as_a_trace_by_every_rank_that_was_meant(run_ranks, tmp_path):
    """Steps 4 and 5 are an image and a text step of two micro-batches, so four passes through one encoder,
    which has one GELU.
    """
    (status, said), (other_status, _) = run_ranks(traced, 2, str(tmp_path))
    assert status == other_status == 0
    first, second = sorted((tmp_path / "toy" / "profile").iterdir())
    assert (first.name, second.name) == ("trace_steps_4-5_rank_0.json.gz", "trace_steps_4-5_rank_1.json.gz")
    assert f"wrote {first}; open it at https://ui.perfetto.dev" in said
    assert kernels_in(first).count("aten::gelu") == kernels_in(second).count("aten::gelu") == 4


def profiler(first_step: int, **changes) -> StepProfiler:
    world = World(rank=1, local_rank=1, size=2, device=torch.device("cpu"), host_group=None)
    return StepProfiler(
        dataclasses.replace(toy_config(), logging=LoggingConfig(**changes)), world, first_step
    )


def test_one_rank_traces_unless_all_are_asked_for_and_never_beyond_the_end():
    assert not profiler(0, profile_steps=(4, 2)).traces and not profiler(0, profile_all_ranks=True).traces
    wanted = profiler(0, profile_steps=(10, 5), profile_all_ranks=True)
    assert wanted.traces and list(wanted.steps) == [10, 11], "the run has 12 steps"
    assert not profiler(0, profile_steps=(12, 5), profile_all_ranks=True).traces


def test_a_memory_snapshot_needs_a_cuda_device():
    config = dataclasses.replace(toy_config(), logging=LoggingConfig(memory_snapshot_step=3))
    with pytest.raises(ConfigError, match="logging.memory_snapshot_step is 3, but there is no CUDA device"):
        check_device(config, torch.device("cpu"))
    check_device(toy_config(), torch.device("cpu"))


@pytest.mark.gpu
def test_a_snapshot_of_a_gpus_memory_lists_what_was_allocated(tmp_path):
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cuda", 0), host_group=None)
    profiler = StepProfiler(
        dataclasses.replace(
            toy_config(), logging=LoggingConfig(memory_snapshot_step=3, run_directory=str(tmp_path))
        ),
        world,
        0,
    )
    with profiler.around(3, None):
        block = torch.zeros(3 * 2**20, device="cuda", dtype=torch.uint8)
    (path,) = (tmp_path / "toy" / "profile").iterdir()
    held = pickle.loads(path.read_bytes())
    assert any(
        event["action"] == "alloc" and event["size"] == block.numel() for event in held["device_traces"][0]
    )
    assert write_snapshot(tmp_path, world, 4).is_file()
