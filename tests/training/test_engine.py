"""Every ZeRO stage against plain torch AdamW in one process over the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerator_stand_in import accelerator_like_a_gpu, frames_in_training
from torch.utils._python_dispatch import TorchDispatchMode
from toy import KINDS, Toy, full_weights, objective_counts, partition_everything, toy_batch, toy_config

from flava_ds.families.flava.views import Kind
from flava_ds.ranks.distributed import World, start
from flava_ds.training.engine import Engine
from flava_ds.training.engine_config import ALLOWED


def stages_in(folder) -> tuple[str, ...]:
    """Names every stage; ZeRO-3 partitions even the toy's small parameters."""
    whole = ("zero0", "zero1", "zero2", "zero1_offload", "zero2_offload")
    return (*whole, partition_everything(folder), partition_everything(folder, "zero3_offload"))


def batches_of(kind, step: int, ranks: int, accumulation: int):
    """The global batch as the table [rank][micro-step]; sizes are equal, terms are not."""
    return [[toy_batch(kind, step, rank, micro) for micro in range(accumulation)] for rank in range(ranks)]


def reference(config, idle: str, ranks: int) -> dict[str, torch.Tensor]:
    """One process, whole batch, torch.optim.AdamW with foreach and fused off, torch's clipping; 'zeros' fills
    absent gradients.
    """
    module = Toy()
    module.logit_scale = torch.nn.Parameter(module.logit_scale.detach().reshape(1))
    optimizer = torch.optim.AdamW(
        module.parameters(),
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=0.1,
        foreach=False,
    )
    for step, kind in enumerate(KINDS):
        optimizer.param_groups[0]["lr"] = config.learning_rate(step)
        batches = sum(batches_of(kind, step, ranks, config.training.gradient_accumulation_steps), [])
        denominators = {name: torch.tensor(float(n)) for name, n in objective_counts(module, batches).items()}
        optimizer.zero_grad()
        for batch in batches:
            module("step", batch, denominators).loss.backward()
        if idle == "zeros":
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.training.gradient_clipping)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def run_steps(
    engine: Engine, config, world: World, kinds, first_step: int = 0, poison: frozenset[int] = frozenset()
) -> list[float]:
    """Runs one optimizer step per kind, as the trainer does; steps in `poison` get a NaN input on rank 0.
    Returns the gradient norms.
    """
    norms = []
    accumulation = config.training.gradient_accumulation_steps
    for step, kind in enumerate(kinds, start=first_step):
        table = batches_of(kind, step, world.size, accumulation)
        counts = objective_counts(engine.module, sum(table, []))
        denominators = {name: torch.tensor(n / world.size) for name, n in counts.items()}
        engine.begin(kind, config.learning_rate(step))
        for micro, batch in enumerate(table[world.rank]):
            if step in poison and world.rank == 0 and micro == 0:
                (batch["pixel_values"] if batch.kind != "text" else batch["input_ids"]).fill_(float("nan"))
            engine.forward_backward(batch, denominators)
        norms.append(float(engine.update()))
    return norms


def compare_stages(stages: tuple[str, ...], cases: tuple[tuple[int, str], ...]) -> dict[tuple, float]:
    """On every rank: the largest difference from the reference, by (stage, accumulation steps, idle)."""
    world = start(60)
    errors = {}
    for accumulation, idle in cases:
        config = toy_config(gradient_accumulation_steps=accumulation, idle_parameters=idle)
        expected = reference(config, idle, world.size)
        for stage in stages:
            config = toy_config(stage, gradient_accumulation_steps=accumulation, idle_parameters=idle)
            module = Toy()
            engine = Engine(module, config, world)
            run_steps(engine, config, world, KINDS)
            weights = full_weights(engine)
            assert weights.keys() == expected.keys()
            errors[stage, accumulation, idle] = max(
                float((weights[name] - expected[name]).abs().max()) for name in expected
            )
    return errors


@pytest.mark.distributed
def test_every_key_that_a_file_may_set_trains_as_without_it(run_ranks, tmp_path):
    values = {
        "zero_optimization": {"stage": 1},
        "communication_data_type": "fp32",
        "prescale_gradients": True,
        "gradient_predivide_factor": 2.0,
        "memory_breakdown": True,
        "aio": {},
    }
    assert values.keys() == ALLOWED
    files = []
    for key, value in values.items():
        files.append(tmp_path / f"{key}.json")
        files[-1].write_text(json.dumps({"zero_optimization": {"stage": 1}, key: value}))
    for errors in run_ranks(compare_stages, 2, tuple(map(str, files)), ((2, "zeros"),)):
        assert len(errors) == len(ALLOWED)
        assert max(errors.values()) < 1e-6, errors


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "cases"), [(1, ((1, "zeros"),)), (2, ((1, "frozen"), (3, "zeros"), (3, "frozen")))]
)
def test_every_stage_matches_plain_adamw(run_ranks, tmp_path, ranks, cases):
    stages = (*stages_in(tmp_path), "zero1_no_overlap")
    for errors in run_ranks(compare_stages, ranks, stages, cases):
        assert len(errors) == len(stages) * len(cases)
        assert max(errors.values()) < 1e-6, errors


def test_idle_switches_differ_by_more_than_the_tolerance():
    frozen, zeros = (reference(toy_config(), idle, 1) for idle in ("frozen", "zeros"))
    assert max(float((frozen[name] - zeros[name]).abs().max()) for name in frozen) > 1e-3


def everything(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies this rank's weights, moments and step counts."""
    state = {
        f"{i}/{key}": value.clone()
        for i, entry in enumerate(engine.optimizer.state.values())
        for key, value in entry.items()
    }
    return state | {name: weight.clone() for name, weight in full_weights(engine).items()}


def poison_steps(cases: tuple[tuple[str, str], ...]) -> list[tuple]:
    """On every rank: what two poisoned steps changed, and whether training went on as if they had
    not been."""
    world = start(60)
    results = []
    for stage, precision in cases:
        config = toy_config(stage, precision=precision, gradient_accumulation_steps=2)
        engines = [Engine(module, config, world) for module in (Toy(), Toy())]
        poisoned, clean = engines
        for engine in engines:
            run_steps(engine, config, world, KINDS[:3])
        before = everything(poisoned)
        norms = run_steps(poisoned, config, world, KINDS[3:5], first_step=3, poison=frozenset({3, 4}))
        after = everything(poisoned)
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        counters = [
            int(value) for value in (poisoned.skipped, poisoned.skipped_in_a_row, poisoned.longest_skip)
        ]
        for engine in engines:
            run_steps(engine, config, world, KINDS[5:], first_step=5)
        ended = everything(poisoned)
        different = [name for name, value in everything(clean).items() if not torch.equal(value, ended[name])]
        results.append(
            (
                stage,
                len(before),
                changed,
                different,
                counters,
                int(poisoned.skipped_in_a_row),
                [n == n and abs(n) < 1e30 for n in norms],
            )
        )
    return results


@pytest.mark.distributed
def test_a_nonfinite_step_touches_nothing_on_any_rank(run_ranks, tmp_path):
    """The NaN is in rank 0's input only; weights, moments and step counts stay bitwise, and later steps run
    as without it.
    """
    zero3, zero3_offload = partition_everything(tmp_path), partition_everything(tmp_path, "zero3_offload")
    full = (("zero0", "fp32"), ("zero1", "fp32"), ("zero2_offload", "fp32"), (zero3, "fp32"))
    half = (
        ("zero1", "bf16"),
        ("zero2", "bf16"),
        ("zero1_offload", "bf16"),
        (zero3, "bf16"),
        (zero3_offload, "bf16"),
    )
    for results in run_ranks(poison_steps, 2, full + half):
        assert len(results) == 9
        for stage, tensors, changed, different, counters, row_at_end, finite in results:
            assert tensors > 40
            assert changed == [], (stage, changed)
            assert different == [], (stage, different)
            assert counters == [2, 2, 2] and row_at_end == 0, stage
            assert finite == [False, False], stage


def compare_bf16(stages: tuple[str, ...], accumulation: int) -> dict[str, float]:
    """On every rank: the mean distance of bf16 weights from the fp32 reference, by stage, and of the initial
    weights from it.
    """
    world = start(60)
    config = toy_config(gradient_accumulation_steps=accumulation)
    expected = reference(config, "frozen", world.size)
    begun = {
        name: parameter.detach().reshape(expected[name].shape) for name, parameter in Toy().named_parameters()
    }
    distances = {"initial": sum(float((begun[name] - expected[name]).abs().mean()) for name in expected)}
    for stage in stages:
        config = toy_config(stage, precision="bf16", gradient_accumulation_steps=accumulation)
        module = Toy()
        engine = Engine(module, config, world)
        run_steps(engine, config, world, KINDS)
        distances[stage] = sum(
            float((weight - expected[name]).abs().mean()) for name, weight in full_weights(engine).items()
        )
    return distances


@pytest.mark.distributed
def test_bf16_follows_fp32_in_every_stage(run_ranks):
    stages = ("zero1", "zero2", "zero3")
    for distances in run_ranks(compare_bf16, 2, stages, 2):
        assert all(distances[stage] < 0.15 * distances["initial"] for stage in stages), distances


def misuse() -> list[str]:
    """Collects what the engine says to steps that would mix up gradients."""
    world = start(60)
    config = toy_config(gradient_accumulation_steps=2)
    module = Toy()
    engine = Engine(module, config, world)
    said = []
    denominators = {name: torch.tensor(1.0) for name in Toy.weights}
    engine.begin(Kind.IMAGE, 1e-3)
    for attempt in (
        lambda: engine.forward_backward(toy_batch(Kind.TEXT, 0, 0, 0), denominators),
        engine.update,
        lambda: engine.begin(Kind.TEXT, 1e-3),
    ):
        with pytest.raises(AssertionError) as caught:
            attempt()
        said.append(str(caught.value))
    return said


def test_a_step_cannot_mix_kinds_or_end_early(run_ranks):
    (said,) = run_ranks(misuse, 1)
    assert "kind 'text' in a step of kind 'image'" in said[0]
    assert "0 micro-batches in a step of 2" in said[1]
    assert "not finished" in said[2]


class Waits(TorchDispatchMode):
    """Collects who asks for the value of a tensor, for which a GPU would have to finish first: a function of
    flava_ds, or DeepSpeed by itself.
    """

    asking = {
        getattr(torch.ops.aten, name)
        for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")
    }

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in self.asking:
            frames = frames_in_training()
            self.found.add("DeepSpeed" if "/deepspeed/" in frames[-1].filename else frames[-1].name)
        return function(*args, **(kwargs or {}))


ZERO3_WAITS = {"_fetch_sub_module_impl", "__reduce_and_partition_ipg_grads", "wait"}
"""Where ZeRO-3 waits for the event of an earlier gather or reduction, and, on one rank, for a gather that
sends nothing.
"""


def watch_steps(stages: tuple[str, ...]) -> dict[str, tuple[set[str], set[str]]]:
    """Who asks for a value, and which functions stop the host until the device or a stream has finished, by
    stage; the first round of steps warms up unwatched.
    """
    world, found = start(60), {}
    for stage in stages:
        with accelerator_like_a_gpu() as seen:
            config = toy_config(stage)
            module = Toy()
            engine = Engine(module, config, world)
            run_steps(engine, config, world, KINDS[:3])
            tables = [
                (kind, batches_of(kind, step, world.size, 1)[world.rank][0])
                for step, kind in enumerate(KINDS[3:7], start=3)
            ]
            denominators = {name: torch.tensor(4.0) for name in Toy.weights}
            seen.waiting.clear()
            with Waits() as waits:
                for step, (kind, batch) in enumerate(tables, start=3):
                    engine.begin(kind, config.learning_rate(step))
                    engine.forward_backward(batch, denominators)
                    engine.update()
            found[stage] = waits.found, set(seen.waiting)
    return found


def reduce_to_owners(folder) -> str:
    """ZeRO-1 that sends each gradient to the rank that owns it."""
    path = folder / "owners.json"
    zero = {"stage": 1, "overlap_comm": True, "use_multi_rank_bucket_allreduce": False}
    path.write_text(json.dumps({"zero_optimization": zero}))
    return str(path)


def test_no_part_of_a_step_waits_for_the_device(run_ranks, tmp_path):
    """The finite check and clipping included. ZeRO-3 waits by itself: for a norm of its own, where the kind
    of step changes, and for events, so that it is never far ahead of its gathers and reductions.
    """
    zero3, owners = partition_everything(tmp_path), reduce_to_owners(tmp_path)
    (found,) = run_ranks(watch_steps, 1, ("zero0", "zero1", "zero2", owners, zero3))
    nobody: tuple[set, set] = set(), set()
    assert {stage: found[stage] for stage in found if stage != zero3} == {
        "zero0": nobody,
        "zero1": nobody,
        "zero2": nobody,
        owners: nobody,
    }
    assert found[zero3] == ({"DeepSpeed"}, ZERO3_WAITS)


@pytest.mark.distributed
def test_ranks_that_exchange_gradients_wait_no_more(run_ranks, tmp_path):
    stages = ("zero0", "zero1", "zero2", reduce_to_owners(tmp_path))
    assert run_ranks(watch_steps, 2, stages) == [dict.fromkeys(stages, (set(), set()))] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_steps_on_a_gpu_do_not_stop_the_host(stage, precision):
    script = Path(__file__).with_name("waits_on_a_gpu.py")
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(script), stage, precision]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {"device": "cuda", "waits": []}


def test_a_wait_of_ours_would_be_found():
    with Waits() as waits:
        exec(
            compile("def norm(tensor): return float(tensor)", "flava_ds/training/engine.py", "exec"),
            space := {},
        )
        space["norm"](torch.ones(()))
    assert waits.found == {"norm"}
