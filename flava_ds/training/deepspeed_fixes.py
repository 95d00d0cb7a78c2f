"""Workarounds for DeepSpeed 0.19, one function each. Tests notice when upstream fixes one."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flava_ds.errors import UserError


def apply_before_initialize(timeout_s: int) -> None:
    """Applies the fixes that `deepspeed.initialize` depends on."""
    # It warns about choices that engine_config makes on purpose.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # one warning per collective: DeepSpeed calls deprecated functions
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    skip_shared_memory_op()
    leave_muon_uncompiled()
    honour_group_timeout(timeout_s)
    see_tensors_in_dataclasses()
    ask_torch_for_free_memory()
    keep_zero_1()


def skip_shared_memory_op() -> None:
    """Stops DeepSpeed from compiling deepspeed_shm_comm on CPU at every start.

    The build takes 25-80 s and needs g++ and ninja; only inference uses the result. Reading the table of
    compatible operators would run compilers to fill it, and nothing but that build asks for it.
    """
    import deepspeed.ops

    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def leave_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon, as every ZeRO stage does, without importing torch's compiler for it.

    That takes one to three seconds of each rank's start. None of our optimizers is that one.
    """
    from deepspeed.runtime import compiler

    original = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = original


def honour_group_timeout(timeout_s: int) -> None:
    """Applies our timeout to DeepSpeed's process groups, which always get torch's default of 30 minutes."""
    from deepspeed.comm.torch import TorchBackend

    timeout = datetime.timedelta(seconds=timeout_s)
    TorchBackend.new_group = lambda self, ranks: torch.distributed.new_group(ranks, timeout=timeout)


def see_tensors_in_dataclasses() -> None:
    """Makes ZeRO-3's module hooks find tensors in dataclasses (Packed, Batch, StepOutput).

    The hooks search tuples, lists and dicts only. If they miss a module's outputs, ZeRO-3 does not gather the
    module's own parameters again for the backward pass.
    """
    from deepspeed.runtime.zero import parameter_offload, utils

    if getattr(utils.apply_to_tensors_only, "sees_dataclasses", False):
        return
    original = utils.apply_to_tensors_only

    def apply_to_tensors_only(function: Any, value: Any, warning_msg_fn: Any = None) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            holders = {
                name: item
                for name, item in fields.items()
                if isinstance(item, torch.Tensor | dict | tuple | list) or dataclasses.is_dataclass(item)
            }
            changed = {name: apply_to_tensors_only(function, item) for name, item in holders.items()}
            return dataclasses.replace(value, **changed)
        return original(function, value, warning_msg_fn)

    vars(apply_to_tensors_only)["sees_dataclasses"] = True
    utils.apply_to_tensors_only = apply_to_tensors_only
    parameter_offload.apply_to_tensors_only = apply_to_tensors_only


def ask_torch_for_free_memory() -> None:
    """Lets torch say how much memory of a GPU is free, for which ZeRO-1 and 2 ask at the start.

    DeepSpeed asks NVML by the number in CUDA_VISIBLE_DEVICES. It ends in an error where that names GPUs, or
    parts of them (MIG), by their UUIDs.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() == "cuda":
        accelerator.available_memory = lambda device_index=None: torch.cuda.mem_get_info(device_index)[0]


def keep_zero_1() -> None:
    """Lets ZeRO-1 sum bf16 gradients in fp32 itself, as it does in fp16 or where state is offloaded.

    DeepSpeed has another optimizer for it, which shards in another way and measures the norm itself.
    """
    from deepspeed.runtime import engine

    original = engine.DeepSpeedEngine._do_optimizer_sanity_check
    if getattr(original, "keeps_zero_1", False):
        return

    @functools.wraps(original)
    def check(self: Any, optimizer: Any) -> Any:
        return engine.ZERO_OPTIMIZATION if self.zero_optimization_stage() == 1 else original(self, optimizer)

    vars(check)["keeps_zero_1"] = True
    engine.DeepSpeedEngine._do_optimizer_sanity_check = check


def reshape_scalars(module: nn.Module) -> None:
    """Reshapes 0-d parameters to [1] in place; `deepspeed.initialize` crashes on a 0-d one in every stage."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = parameter.detach().reshape(1)
                setattr(child, name, nn.Parameter(vector, requires_grad=parameter.requires_grad))


STOPS = {
    **dict.fromkeys(
        (1, 2),
        {
            "independent_gradient_partition_epilogue": "get_accelerator().synchronize()",
            "allreduce_and_copy": "get_accelerator().synchronize()",
        },
    ),
    3: {"independent_gradient_partition_epilogue": "self.reduce_and_partition_stream.synchronize()"},
}
"""By ZeRO stage: the methods in which the host waits for reductions, and the call that does it."""


def wait_in_streams(engine: Any) -> None:
    """Lets the device's streams wait for reductions of gradients, where DeepSpeed stops the host for them.

    With overlap_comm, ZeRO-1 and 2 wait for the whole device at the end of every backward pass, also on one
    rank, and ZeRO-3 for its reductions. But only the norm and the update read the result, and they are
    launched into the current stream; memory that is freed meanwhile is the current stream's too. A host that
    updates offloaded state reads the result itself, so there it has to wait.

    Raises: UserError if this is another DeepSpeed, whose methods wait differently.
    """
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
        return
    for name, call in STOPS.get(stage, {}).items():
        _check_that_it_stops(type(zero), name, call)
        setattr(zero, name, _without_stopping(getattr(zero, name), zero, stage))


def _without_stopping(method: Callable[..., Any], zero: Any, stage: int) -> Callable[..., Any]:
    """Returns a method that orders the current stream and the one of reductions where it would wait."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        stream = zero.reduce_and_partition_stream if stage == 3 else zero.reduction_stream
        if stream is None:  # a device that works in step with the host, as a CPU
            return method(*args, **kwargs)
        waiting = stream if stage == 3 else accelerator

        def order(*_: Any) -> None:
            current = accelerator.current_stream()
            stream.wait_stream(current)
            current.wait_stream(stream)

        outer = vars(waiting).get("synchronize")  # of a method that calls this one
        waiting.synchronize = order  # hides the class's
        try:
            return method(*args, **kwargs)
        finally:
            if outer is None:
                del waiting.synchronize
            else:
                waiting.synchronize = outer

    return run


def _check_that_it_stops(owner: type, name: str, call: str) -> None:
    """Raises UserError unless the method's source has the call that is to be replaced, once."""
    function: Any = getattr(owner, name, None)
    found = 0
    if function is not None:
        function = inspect.getclosurevars(function).nonlocals.get("func", function)  # if it is decorated
        found = inspect.getsource(function).count(call)
    if found != 1:
        import deepspeed

        raise UserError(
            f"DeepSpeed {deepspeed.__version__} is not the one that flava_ds is made for: "
            f"{owner.__name__}.{name} has '{call}' {found} times instead of once, where the host "
            "would wait for the device; install deepspeed==0.19.8"
        )


def keep_what_travels_alone(engine: Any) -> None:
    """Keeps a gradient that is larger than a bucket in memory until its reduction has read it.

    ZeRO-1 and 2 with overlap_comm average it in place, in the stream of reductions. A rank that owns no part
    of it drops it as soon as that is launched, and the backward pass, which does not wait, may be given its
    memory and write there. A bucket outlives its reduction, and where state is offloaded, DeepSpeed does this
    itself.
    """
    zero = engine.optimizer
    if engine.zero_optimization_stage() not in (1, 2) or zero.cpu_offload or not zero.overlap_comm:
        return
    average = zero.average_tensor

    def average_tensor(tensor: torch.Tensor, communication_data_type: torch.dtype) -> None:
        if communication_data_type in zero.extra_large_param_to_reduce and zero.reduction_stream is not None:
            tensor.record_stream(zero.reduction_stream)
        average(tensor, communication_data_type)

    zero.average_tensor = average_tensor


def unscale_by_their_own_scale(zero: Any) -> None:
    """Divides fp16 gradients by the loss scale that they carry.

    ZeRO 1 to 3 first choose the next step's scale. Where that is raised, every 1,000 steps, they would then
    halve the gradients, after the engine has clipped them.
    """
    scaler: Any = getattr(zero, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return
    update, unscale = zero._update_scale, zero.unscale_and_clip_grads
    carried = scaler.cur_scale

    def update_scale(*arguments: Any, **keywords: Any) -> None:
        nonlocal carried
        carried = scaler.cur_scale
        update(*arguments, **keywords)

    def unscale_and_clip_grads(*arguments: Any, **keywords: Any) -> None:
        chosen, scaler.cur_scale = scaler.cur_scale, carried
        try:
            unscale(*arguments, **keywords)
        finally:
            scaler.cur_scale = chosen

    zero._update_scale, zero.unscale_and_clip_grads = update_scale, unscale_and_clip_grads


def skip_at_the_smallest_scale(zero: Any) -> None:
    """Lets fp16 skip an update where the loss scale cannot be lowered any more.

    DeepSpeed ends the run there with an error of its own: within 17 skipped updates in a row or fewer, which
    is before a log line at which training.stop_on_nonfinite would have rolled it back.
    """
    scaler: Any = getattr(zero, "loss_scaler", None)
    if getattr(scaler, "dynamic", False):
        scaler.raise_error_at_min_scale = False


def clear_stale_gradients(zero: Any) -> None:
    """Zeroes the gradient buffers that survive an update; call it before the first micro-step.

    Otherwise ZeRO-3, and ZeRO-1/2 with offload_optimizer, apply the previous gradient again to every
    parameter that this step does not use.
    """
    if getattr(zero, "grad_partitions_flat_buffer", None) is not None:
        zero.grad_partitions_flat_buffer.zero_()
        kept = zero.fp32_partitioned_groups_flat
    elif getattr(zero, "cpu_offload", False):
        kept = zero.single_partition_of_fp32_groups
    else:
        return
    for partition in kept:
        if partition.grad is not None:
            partition.grad.zero_()


def tell_the_last_pass(engine: Any) -> None:
    """Tells ZeRO whether the next backward pass is the last one of its update; call it before each.

    DeepSpeed tells it in a hook on the outputs of the forward pass, which it does not find in a dataclass,
    and again after the pass. ZeRO would then take what it reduces or copies to the host meanwhile, as one
    bucket after the other is full, for gradients of a pass like the one before.
    """
    if hasattr(engine.optimizer, "set_gradient_accumulation_boundary"):
        engine.optimizer.set_gradient_accumulation_boundary(engine.is_gradient_accumulation_boundary())


def local_gradients(engine: Any) -> list[tuple[dict[str, Any], list[torch.Tensor], bool]]:
    """Lists this rank's averaged gradients: (parameter group, tensors, whether all ranks hold the same).

    Call it between the last backward pass and `engine.step`. It replaces DeepSpeed's own norm, which waits
    for the device once per parameter group and, in ZeRO-1/2 with bf16, turns an invalid norm into an update
    with NaN. Where they are offloaded, it waits until they are on the host.
    """
    zero, groups = engine.optimizer, engine.basic_optimizer.param_groups
    if engine.zero_optimization_stage() == 0:
        return [(group, [p.grad for p in group["params"] if p.grad is not None], True) for group in groups]
    if engine.zero_optimization_stage() == 3:
        if zero.offload_optimizer:
            parts = [[flat.grad] for flat in zero.fp32_partitioned_groups_flat]
        else:
            parts = [zero.averaged_gradients[i] for i in range(len(zero.fp16_groups))]
        return [(groups[zero.sub_group_to_group_id[i]], tensors, False) for i, tensors in enumerate(parts)]
    if zero.cpu_offload:
        zero._wait_for_offload_copies()  # without overlap_comm, nothing has waited for the device
        return [
            (group, [flat.grad], False)
            for group, flat in zip(groups, zero.single_partition_of_fp32_groups, strict=True)
        ]
    return [(group, list(zero.averaged_gradients[i]), False) for i, group in enumerate(groups)]
