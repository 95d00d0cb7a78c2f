"""A step that does not fit: torch's own error, raised in a real step, becomes one line that says what to
change.
"""

import dataclasses
import subprocess
import sys

import pytest
import torch
from test_trainer import toy_trainer
from toy import toy_config

from flava_ds.config import Config, DataConfig, SourceConfig
from flava_ds.errors import DeviceMemoryError
from flava_ds.ranks.distributed import World
from flava_ds.training.engine import Engine
from flava_ds.training.engine_config import merged_settings
from flava_ds.watching.out_of_memory import explained, remedies

SAID = "CUDA out of memory. Tried to allocate 20.00 MiB."


def world_of(size: int) -> World:
    return World(rank=0, local_rank=0, size=size, device=torch.device("cpu"), host_group=None)


def config_of(deepspeed_config: str, batches: tuple[int, ...] = (64,), **training) -> Config:
    sources = {
        f"s{n}": SourceConfig(kind="text", shards="x", global_batch_size=size)
        for n, size in enumerate(batches)
    }
    return dataclasses.replace(toy_config(deepspeed_config, **training), data=DataConfig(sources=sources))


def test_settings_are_named_in_order_with_their_present_values():
    found = remedies(config_of("zero1", gradient_accumulation_steps=2), world_of(4), "s0")
    assert [way.split(":")[0] for way in found[:-1]] == [
        "--training.gradient-accumulation-steps 4 (now 2)",
        "--training.recompute-gelu (now off)",
        "--training.activation-checkpointing (now off)",
        "--engine.deepspeed-config zero2 or zero3 (now zero1)",
        "--engine.deepspeed-config zero1_offload (now zero1)",
    ]
    assert (
        "micro-batches of 4 instead of 8" in found[0]
        and "the same global batch" in found[0]
        and "change results" in found[-1]
    )


def test_what_cannot_help_is_not_named():
    """Batches of 12 and 18 over one rank: 2 and 3 steps divide both, then 6; a single rank has nobody to
    divide state with.
    """
    first = [
        remedies(config_of("zero2", (12, 18), gradient_accumulation_steps=n), world_of(1), "s0")[0].split(
            " ("
        )[0]
        for n in (1, 2, 3)
    ]
    assert first == [f"--training.gradient-accumulation-steps {n}" for n in (2, 6, 6)]
    exhausted = config_of(
        "zero3_offload", (12, 18), gradient_accumulation_steps=6, activation_checkpointing=True
    )
    assert [way.split(",")[0] for way in remedies(exhausted, world_of(1), "s0")] == ["more ranks"]
    start = remedies(config_of("zero0"), world_of(2), None)
    assert [way.split(" (")[0] for way in start[:-1]] == [
        f"--engine.deepspeed-config {name}" for name in ("zero1 or zero2 or zero3", "zero1_offload")
    ], "before the first step batches take no memory"


def test_offloading_that_is_null_is_none(tmp_path):
    """As DeepSpeed's own schema has it; the engine asks the same."""
    file = tmp_path / "null.json"
    file.write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": null}}')
    config = config_of(str(file))
    assert any("zero2_offload" in way for way in remedies(config, world_of(1), "s0"))
    engine = Engine.__new__(Engine)
    engine.settings = merged_settings(config, 1, "cpu")
    assert not engine.offloaded


HOST = (
    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8000000000 bytes"
)
LIBRARY = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"
LOADED = "Triton Error [CUDA]: out of memory"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(SAID), *(RuntimeError(said) for said in (HOST, LIBRARY, LOADED))]
)
def test_memory_of_every_kind_is_recognised(error):
    with pytest.raises(
        DeviceMemoryError,
        match=(
            r"^rank 0 on \S+ ran out of memory in a step \(.*\)\. Try, in this order: "
            r"\(1\) "
        ),
    ):
        with explained(config_of("zero1"), world_of(1), "in a step", source="s0"):
            raise error


def test_other_errors_pass():
    with (
        pytest.raises(RuntimeError, match="^a shape is wrong$"),
        explained(config_of("zero1"), world_of(1), "in a step"),
    ):
        raise RuntimeError("a shape is wrong")


def train_out_of_memory(folder: str) -> str:
    """The backward pass of step 4 finds no memory."""
    trainer = toy_trainer(folder)

    def exhausted(gradient):
        if trainer.engine.deepspeed.global_steps == 4:
            raise torch.OutOfMemoryError(SAID)

    trainer.engine.module.text_encoder.first.weight.register_hook(exhausted)
    trainer.engine.module.image_encoder.first.weight.register_hook(exhausted)
    try:
        return str(trainer.fit())
    except DeviceMemoryError as error:
        return str(error)


def test_a_step_without_memory_ends_the_run_with_that_line(run_ranks, tmp_path):
    (said,) = run_ranks(train_out_of_memory, 1, str(tmp_path))
    assert (
        "ran out of memory in step 4, of image batches from 'image' (CUDA out of memory. Tried to "
        "allocate 20.00 MiB)"
    ) in said
    assert "--engine.deepspeed-config zero1_offload (now zero1)" in said and "\n" not in said


def test_a_model_without_memory_ends_the_run_with_that_line(tmp_path):
    """The model's own constructor finds none: 20 GB for one layer, of 14 GB."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (14 * 10**9,) * 2)"
    command = [sys.executable, "-c", f"{limited}; from flava_ds.train import main; sys.exit(main())"]
    words = ["flava_debug", "--logging.run-directory", str(tmp_path), "--model.text.hidden-size", "40960"]
    done = subprocess.run(
        [*command, *words, "--model.text.num-attention-heads", "64"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "ran out of memory while model and optimizer were set up (" in done.stderr
    assert "Traceback" not in done.stderr
