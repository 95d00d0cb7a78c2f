"""Each workaround: what it does, and that DeepSpeed still needs it. When a test_upstream_still_... fails, the
workaround can go.
"""

from __future__ import annotations

import datetime
import importlib
import json
import sys
from typing import Any
from unittest import mock

import pytest
import torch
from accelerator_stand_in import Seen, accelerator_like_a_gpu
from test_engine import run_steps
from toy import Toy, partition_everything, toy_batch, toy_config

from flava_ds.errors import UserError
from flava_ds.families.flava.views import Kind
from flava_ds.ranks.distributed import start
from flava_ds.training import deepspeed_fixes
from flava_ds.training.engine import Engine


def initialize(module: torch.nn.Module, stage: int, optimizer: torch.optim.Optimizer, **settings):
    """Plain DeepSpeed, without our engine; only the slow compilation is kept out."""
    import deepspeed

    deepspeed_fixes.skip_shared_memory_op()
    deepspeed_fixes.leave_muon_uncompiled()
    base = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
    }
    base |= {
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            **settings.pop("zero", {}),
        }
    } | settings
    return deepspeed.initialize(model=module, optimizer=optimizer, config=base, dist_init_required=False)[0]


class Two(torch.nn.Module):
    """Two layers of which a step uses one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, name: str) -> torch.Tensor:
        return getattr(self, name)(torch.ones(2, 4)).square().sum()


def step(engine, name: str) -> None:
    engine.backward(engine(name))
    engine.step()


def stale_gradients(fixed: bool) -> dict[str, float]:
    """How far plain SGD moves `a` in a step that uses `b` alone."""
    start(60)
    moved = {}
    for name, stage, zero in (
        ("zero3", 3, {}),
        ("zero1_offload", 1, {"offload_optimizer": {"device": "cpu"}}),
    ):
        module = Two()
        engine = initialize(module, stage, torch.optim.SGD(module.parameters(), lr=0.1), zero=zero)
        from deepspeed.utils import safe_get_full_fp32_param

        step(engine, "a")
        before = safe_get_full_fp32_param(module.a.weight).clone()
        if fixed:
            deepspeed_fixes.clear_stale_gradients(engine.optimizer)
        step(engine, "b")
        moved[name] = float((safe_get_full_fp32_param(module.a.weight) - before).abs().max())
    return moved


def test_upstream_still_applies_stale_gradients(run_ranks):
    (moved,) = run_ranks(stale_gradients, 1, False)
    assert all(distance > 1e-3 for distance in moved.values()), moved


def test_clearing_stops_stale_gradients(run_ranks):
    (moved,) = run_ranks(stale_gradients, 1, True)
    assert moved == {"zero3": 0.0, "zero1_offload": 0.0}


def idle_motion() -> dict[int, float]:
    """How far AdamW moves `a` in a step that uses `b` alone, by stage; under plain torch it stays where it
    is.
    """
    start(60)
    moved = {}
    for stage in (0, 1, 2):
        module = Two()
        engine = initialize(module, stage, torch.optim.AdamW(module.parameters(), lr=0.1))
        step(engine, "a")
        before = module.a.weight.detach().clone()
        step(engine, "b")
        moved[stage] = float((module.a.weight - before).abs().max())
    return moved


def test_upstream_still_moves_parameters_that_a_step_does_not_use(run_ranks):
    """Why the optimizer is gated by groups: idle_parameters "frozen" would need nothing else."""
    (moved,) = run_ranks(idle_motion, 1)
    assert all(distance > 1e-3 for distance in moved.values()), moved


class Scaled(torch.nn.Module):
    """A vector whose gradient is what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, factor: float) -> torch.Tensor:
        return (self.weight * factor).sum()


def upstream_habits() -> dict[str, object]:
    """Collects what DeepSpeed does on its own, one small engine each."""
    import deepspeed
    from deepspeed.comm.torch import TorchBackend
    from deepspeed.runtime.config import DeepSpeedConfig

    start(33)
    said: dict[str, object] = {}
    config = DeepSpeedConfig(
        {"train_micro_batch_size_per_gpu": 1, "gradient_cliping": 3.0, "zero_optimisation": {"stage": 2}}
    )
    said["unknown keys"] = "accepted"
    said["default clipping"] = config.gradient_clipping

    scalar = torch.nn.Module()
    scalar.scale = torch.nn.Parameter(torch.tensor(1.0))
    try:
        initialize(scalar, 1, torch.optim.SGD(scalar.parameters(), lr=0.1))
        said["0-d"] = "accepted"
    except RuntimeError as error:
        said["0-d"] = str(error)

    module = Two()
    optimizer = torch.optim.AdamW(module.parameters())
    initialize(module, 0, optimizer, bf16={"enabled": True})
    said["updates at start, stage 0 + bf16"] = [float(state["step"]) for state in optimizer.state.values()]

    scaled = Scaled()
    engine = initialize(
        scaled,
        1,
        torch.optim.SGD(scaled.parameters(), lr=0.1),
        bf16={"enabled": True, "check_grad_overflow": False},
    )
    engine.backward(engine(float("nan")))
    engine.step()
    said["NaN reaches the weights, stage 1 + bf16 without a check that waits"] = bool(
        scaled.weight.isnan().all()
    )

    group = TorchBackend.new_group(deepspeed.comm.comm.cdb, [0])
    said["upstream timeout"] = group._get_backend(torch.device("cpu")).options._timeout
    original = TorchBackend.new_group
    deepspeed_fixes.honour_group_timeout(33)
    group = deepspeed.comm.comm.cdb.new_group([0])
    said["our timeout"] = group._get_backend(torch.device("cpu")).options._timeout
    TorchBackend.new_group = original
    return said


def test_upstream_still_has_the_habits_that_engine_config_and_fixes_work_around(run_ranks):
    (said,) = run_ranks(upstream_habits, 1)
    assert said["unknown keys"] == "accepted"
    assert said["default clipping"] == 1.0
    assert "cannot be 0" in said["0-d"]
    assert said["updates at start, stage 0 + bf16"] == [1.0] * 4
    assert said["NaN reaches the weights, stage 1 + bf16 without a check that waits"]
    assert said["upstream timeout"] > datetime.timedelta(minutes=20)
    assert said["our timeout"] == datetime.timedelta(seconds=33)


def hidden_tensors(fixed: bool, path: str) -> str:
    """Runs the toy, whose modules return dataclasses, under ZeRO-3."""
    world = start(60)
    config = toy_config(path)
    if not fixed:
        deepspeed_fixes.see_tensors_in_dataclasses = lambda: None
    module = Toy()
    engine = Engine(module, config, world)
    try:
        run_steps(engine, config, world, [Kind.PAIR])
    except RuntimeError as error:
        return str(error)
    return "fine"


def test_upstream_still_overlooks_tensors_in_dataclasses(run_ranks, tmp_path):
    path = partition_everything(tmp_path)
    (said,) = run_ranks(hidden_tensors, 1, False, path)
    assert "size" in said or "shape" in said
    assert run_ranks(hidden_tensors, 1, True, path) == ["fine"]


def order_of_reductions(path: str) -> list[tuple[bool, list[str]]]:
    """For DeepSpeed as it is and with the fix: whether the current stream is told to wait for the reductions
    where the host waits otherwise, and the methods in which the host waits for them.
    """
    world, found = start(60), []
    fixed_methods = {name for methods in deepspeed_fixes.STOPS.values() for name in methods}
    for fix in (lambda engine: None, deepspeed_fixes.wait_in_streams):
        with (
            accelerator_like_a_gpu() as seen,
            mock.patch.object(deepspeed_fixes, "wait_in_streams", fix),
        ):
            config = toy_config(path)
            module = Toy()
            engine = Engine(module, config, world)
            run_steps(engine, config, world, [Kind.PAIR])
            zero = engine.deepspeed.optimizer
            reductions = getattr(zero, "reduce_and_partition_stream", None) or zero.reduction_stream
            from deepspeed.accelerator import get_accelerator

            current = get_accelerator().current_stream()
            ordered = ("order", current, reductions) in seen.ordered
            found.append((ordered, sorted(fixed_methods & set(seen.waiting))))
    return found


def test_upstream_still_stops_the_host_where_streams_can_wait(run_ranks, tmp_path):
    epilogue = "independent_gradient_partition_epilogue"
    owners = tmp_path / "owners.json"
    zero = {"stage": 1, "overlap_comm": True, "use_multi_rank_bucket_allreduce": False}
    owners.write_text(json.dumps({"zero_optimization": zero}))
    for path, waiting in (
        ("zero1", [epilogue]),
        ("zero2", [epilogue]),
        (str(owners), ["allreduce_and_copy", epilogue]),
        (partition_everything(tmp_path), [epilogue]),
    ):
        assert run_ranks(order_of_reductions, 1, path) == [[(False, waiting), (True, [])]], path


def dropped_early(path: str) -> list[int]:
    """For DeepSpeed as it is and with the fix: how many gradients that travel alone are dropped while the
    stream of reductions may still have to read them.
    """
    world, found = start(60), []
    for fix in (lambda engine: None, deepspeed_fixes.keep_what_travels_alone):
        with (
            accelerator_like_a_gpu() as seen,
            mock.patch.object(deepspeed_fixes, "keep_what_travels_alone", fix),
        ):
            config = toy_config(path)
            engine = Engine(Toy(), config, world)
            early = watch_drops(engine.deepspeed.optimizer, seen)
            run_steps(engine, config, world, [Kind.PAIR])
            found.append(len(early))
    return found


def watch_drops(zero: Any, seen: Seen) -> list[torch.nn.Parameter]:
    """Returns a list that gets the parameters whose gradient, larger than a bucket, is dropped too early."""
    early, clear = [], zero.clear_grad_attribute

    def watched(parameter: torch.nn.Parameter) -> None:
        gradient = parameter.grad
        large = gradient is not None and gradient.numel() > zero.reduce_bucket_size
        if large and not seen.keeps(gradient, zero.reduction_stream):
            early.append(parameter)
        clear(parameter)

    zero.clear_grad_attribute = watched
    return early


@pytest.mark.distributed
@pytest.mark.parametrize("scatter", [True, False])
def test_upstream_still_drops_gradients_before_their_reduction_has_read_them(run_ranks, tmp_path, scatter):
    path = tmp_path / "small_buckets.json"
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 64, "reduce_scatter": scatter}
    path.write_text(json.dumps({"zero_optimization": zero}))
    upstream, fixed = zip(*run_ranks(dropped_early, 3, str(path)), strict=True)
    assert any(upstream) and not any(fixed), (upstream, fixed)


def test_a_host_that_reads_offloaded_gradients_waits_for_them(run_ranks):
    epilogue = "independent_gradient_partition_epilogue"
    (found,) = run_ranks(order_of_reductions, 1, "zero1_offload")
    assert found == [(False, [epilogue]), (False, [epilogue])]


def test_gradients_that_are_still_on_their_way_to_the_host_are_waited_for(run_ranks, tmp_path):
    """Without overlap_comm, DeepSpeed waits for them in its own step alone, which is after our norm."""
    path = tmp_path / "offload.json"
    zero = {"stage": 2, "overlap_comm": False, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
    path.write_text(json.dumps({"zero_optimization": zero}))
    assert run_ranks(copies_on_their_way, 1, str(path)) == [(True, False)]


def copies_on_their_way(path: str) -> tuple[bool, bool]:
    """Whether some are after the backward pass, and after the gradients have been listed."""
    world, denominators = start(60), {name: torch.tensor(4.0) for name in Toy.weights}
    with accelerator_like_a_gpu():
        engine = Engine(Toy(), toy_config(path), world)
        engine.begin(Kind.PAIR, 1e-3)
        engine.forward_backward(toy_batch(Kind.PAIR, 0, 0, 0), denominators)
        zero = engine.deepspeed.optimizer
        before = bool(zero._pending_offload_events)
        deepspeed_fixes.local_gradients(engine.deepspeed)
        return before, bool(zero._pending_offload_events)


def test_another_deepspeed_is_refused_instead_of_changed(run_ranks):
    (said,) = run_ranks(_changed_upstream, 1)
    for name, line in zip(("allreduce_and_copy", "gone"), said, strict=True):
        assert f".{name} has 'no such call' 0 times" in line and "install deepspeed==" in line


def _changed_upstream() -> list[str]:
    """What a run says if DeepSpeed waits in another way, or in a method of another name."""
    world, said = start(60), []
    for name in ("allreduce_and_copy", "gone"):
        changed = {1: {name: "no such call"}}
        with mock.patch.object(deepspeed_fixes, "STOPS", changed), pytest.raises(UserError) as caught:
            Engine(Toy(), toy_config("zero1"), world)
        said.append(str(caught.value))
    return said


def test_upstream_still_wants_to_compile_an_op_at_start(run_ranks):
    assert run_ranks(_shared_memory_op, 1) == [(True, None)]


def _shared_memory_op() -> tuple[bool, object]:
    """Whether DeepSpeed would build deepspeed_shm_comm, and what it builds after the fix."""
    import deepspeed.ops
    from deepspeed.comm.torch import build_shm_op

    wanted = deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"]
    deepspeed_fixes.skip_shared_memory_op()
    return bool(wanted), build_shm_op()


def test_free_memory_of_gpus_that_are_named_by_uuid(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a2b3c4d,MIG-5e6f7a8b")
    from deepspeed import accelerator
    from deepspeed.accelerator import cuda_accelerator

    monkeypatch.setattr(cuda_accelerator, "pynvml", mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (7, 80))
    gpu = cuda_accelerator.CUDA_Accelerator()
    monkeypatch.setattr(accelerator, "get_accelerator", lambda: gpu)
    with pytest.raises(ValueError, match="GPU-1a2b3c4d"):  # upstream still asks by number
        gpu.available_memory(0)
    deepspeed_fixes.ask_torch_for_free_memory()
    assert gpu.available_memory(0) == 7


COMPILER = "torch._inductor.compile_fx"


def test_upstream_still_imports_the_compiler_for_an_optimizer_that_is_not_used(run_ranks):
    assert run_ranks(_compiler_for_muon, 1) == [(False, False, True)]


def _compiler_for_muon() -> tuple[bool, bool, bool]:
    """Whether torch's compiler is imported: at first, with Muon after the fix, and without the fix."""
    first = COMPILER in sys.modules
    deepspeed_fixes.leave_muon_uncompiled()
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    assert issubclass(muon_optimizer.MuonWithAuxAdam, original_muon.MuonWithAuxAdam)
    fixed = COMPILER in sys.modules
    importlib.reload(original_muon)
    return first, fixed, COMPILER in sys.modules


def test_scalars_become_vectors_of_one_in_place():
    module = Toy()
    deepspeed_fixes.reshape_scalars(module)
    assert module.logit_scale.shape == (1,) and isinstance(module.logit_scale, torch.nn.Parameter)
    denominators = {"mmm_text": torch.tensor(1.0), "itm": torch.tensor(1.0)}
    ours, theirs = (toy("step", toy_batch(Kind.PAIR, 0, 0, 0), denominators).loss for toy in (module, Toy()))
    torch.testing.assert_close(ours, theirs)
