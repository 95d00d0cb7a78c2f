"""A whole run on the Triton kernels, in Triton's interpreter, logs the losses of the same run on the torch
references.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from flava_ds.config import CheckpointConfig
from flava_ds.demo.dataset import unpack
from flava_ds.recipes.demo import DATA
from flava_ds.recipes.flava_debug import flava_debug

STEPS = 10
"""Enough for every kind of step; the interpreter takes seconds for one of so few samples."""
BATCH = 4
KERNELS = "flava_kernels.triton_ops."


def train(folder: str, implementation: str) -> tuple[int, list[str]]:
    """Trains `flava_debug` on small batches; returns its status and the modules of kernels that it loaded."""
    os.environ["FLAVA_KERNELS"] = implementation
    os.chdir(folder)
    import interpreter_bf16

    from flava_ds.build import build

    interpreter_bf16.install()
    recipe = flava_debug()
    sources = {
        name: dataclasses.replace(source, global_batch_size=BATCH)
        for name, source in recipe.data.sources.items()
    }
    config = dataclasses.replace(
        recipe,
        name=implementation,
        data=dataclasses.replace(recipe.data, sources=sources),
        training=dataclasses.replace(recipe.training, total_steps=STEPS),
        checkpoint=CheckpointConfig(every_steps=0),
        logging=dataclasses.replace(recipe.logging, tensorboard=False),
    )
    return build(config).fit(), [
        name.removeprefix(KERNELS) for name in sys.modules if name.startswith(KERNELS)
    ]


def logged(folder: Path, name: str) -> list[dict]:
    """The lines of a run, without its header."""
    return [json.loads(line) for line in (folder / "runs" / name / "log.jsonl").read_text().splitlines()][1:]


@pytest.mark.slow
@pytest.mark.triton
def test_a_run_on_the_kernels_logs_the_losses_of_the_torch_references(run_ranks, tmp_path):
    """Relative tolerance 1e-4 after ten updates: each operator is within 2e-6 in fp32, and the optimizer
    divides by small second moments.
    """
    unpack(tmp_path / DATA)
    [(status, loaded)] = run_ranks(train, 1, str(tmp_path), "torch")
    assert status == 0 and "attention" not in loaded
    [(status, loaded)] = run_ranks(train, 1, str(tmp_path), "triton")
    assert status == 0 and {
        "attention",
        "contrastive",
        "fusing",
        "layer_norm",
        "linear_cross_entropy",
        "linear_gelu",
    } <= set(loaded)
    theirs, ours = logged(tmp_path, "torch"), logged(tmp_path, "triton")
    assert len(theirs) == STEPS and {line["kind"] for line in theirs} == {"pair", "image", "text"}
    for expected, found in zip(theirs, ours, strict=True):
        losses = {
            key: value for key, value in expected.items() if key.startswith("loss/") or key == "grad_norm"
        }
        assert {key: found[key] for key in losses} == pytest.approx(losses, rel=1e-4), expected["step"]
