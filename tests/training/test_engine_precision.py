"""What half precision must not touch: the weights that a run starts from, and sums of gradients in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from test_deepspeed_fixes_fp16 import allow_fp16
from test_engine import batches_of, stages_in
from toy import Toy, full_weights, objective_counts, toy_config

from flava_ds.families.flava.views import Kind
from flava_ds.ranks.distributed import start
from flava_ds.training import deepspeed_fixes, fragments
from flava_ds.training.engine import Engine
from flava_ds.training.engine_config import read_settings


def farthest(stages: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """By stage, before any update: the largest differences of the optimizer's weights from those that the
    engine was given, and of the module's from the same ones in half precision.
    """
    world, given = start(60), {name: own.detach().clone() for name, own in Toy().named_parameters()}
    found = {}
    for stage in stages:
        engine = Engine(Toy(), toy_config(stage, precision="bf16"), world)
        weights = full_weights(engine)
        distances = [float((weights[name].view_as(own) - own).abs().max()) for name, own in given.items()]
        rounded = [
            float((own.detach().view_as(given[name]) - given[name].bfloat16()).abs().max())
            for name, own in engine.module.named_parameters()
            if engine.stage < 3
        ]
        found[stage] = max(distances), max(rounded, default=0.0)
    return found


def test_a_run_in_half_precision_starts_from_the_weights_that_it_was_given(run_ranks, tmp_path):
    stages = tuple(stage for stage in stages_in(tmp_path) if stage != "zero0")  # refused in half precision
    for found in run_ranks(farthest, 3, stages):
        assert set(found.values()) == {(0.0, 0.0)}, found


MICRO_STEPS = 40


def sums_in_fp64(batches, denominators, dtype: torch.dtype, loss_scale: float) -> dict[str, torch.Tensor]:
    """Gradients of the scaled losses, each computed in half precision, by parameter."""
    module, sums = Toy(), {}
    deepspeed_fixes.reshape_scalars(module)
    module.to(dtype)
    for batch in batches:
        module.zero_grad()
        (module("step", batch, denominators).loss.float() * loss_scale).backward()
        for name, own in module.named_parameters():
            if own.grad is not None:
                sums[name] = sums.get(name, 0.0) + own.grad.double()
    return sums


def errors_of_sums(files: tuple[str, ...], precision: str, in_fp32: bool) -> dict[str, float]:
    """By file: the largest error of a parameter's summed gradient, as its squared norm over all ranks."""
    world, found = start(60), {}
    if precision == "fp16":
        allow_fp16()
    for file in files:
        training = {"gradient_accumulation_steps": MICRO_STEPS, "accumulate_in_fp32": in_fp32}
        engine = Engine(Toy(), toy_config(file, precision=precision, **training), world)
        table = batches_of(Kind.PAIR, 0, world.size, MICRO_STEPS)
        counts = objective_counts(engine.module, sum(table, []))
        denominators = {name: torch.tensor(count / world.size) for name, count in counts.items()}
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        exact = sums_in_fp64(sum(table, []), denominators, dtype, engine.loss_scale)
        engine.begin(Kind.PAIR, 0.0)
        for batch in table[world.rank]:
            engine.forward_backward(batch, denominators)
        squares = dict.fromkeys(exact, 0.0)
        for name, part in fragments.gradients(engine):
            squares[name] = squares.get(name, 0.0) + float(part.double().square().sum())
        total = torch.tensor([squares[name] for name in exact], dtype=torch.float64)
        dist.all_reduce(total)
        expected = torch.stack([own.square().sum() for own in exact.values()]) / world.size**2
        found[Path(file).stem] = float(((total - expected).abs() / expected).max())
        engine.update()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sums_of_gradients_in_fp32_lose_nothing_in_any_stage(run_ranks, tmp_path, precision):
    """Several buckets, which travel in fp32; sums in half precision are what the test must tell apart."""
    files = []
    for name in stages_in(tmp_path)[1:]:  # the first is refused in half precision
        settings = read_settings(name)[0] | {"communication_data_type": "fp32"}
        settings["zero_optimization"]["reduce_bucket_size"] = 300
        files.append(str(tmp_path / f"{Path(name).stem}_wide.json"))
        Path(files[-1]).write_text(json.dumps(settings))
    for found in run_ranks(errors_of_sums, 2, tuple(files), precision, True):
        assert len(found) == len(files) and max(found.values()) < 1e-6, found
    for found in run_ranks(errors_of_sums, 2, (files[0],), precision, False):
        assert min(found.values()) > 1e-4, found


def test_upstream_still_has_another_optimizer_for_zero_1(run_ranks):
    assert run_ranks(refusal, 1) == [
        "zero_optimization.compute_grad_norm=false does not support ZeRO Stage 1"
    ]


def refusal() -> str:
    """The beginning of DeepSpeed's own error."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    changed = DeepSpeedEngine._do_optimizer_sanity_check
    DeepSpeedEngine._do_optimizer_sanity_check = getattr(changed, "__wrapped__", changed)
    mock.patch.object(deepspeed_fixes, "keep_zero_1").start()
    with pytest.raises(ValueError) as error:
        Engine(Toy(), toy_config("zero1", precision="bf16", accumulate_in_fp32=True), start(60))
    return str(error.value)[:71]
