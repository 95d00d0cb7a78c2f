"""What a run is going to be, in four lines: parameters, data, memory, and the first line of its log; more say
so if evaluations are set up that nothing runs, settings that nothing in the model follows, or sums that bf16
rounds.

A dry run prints them of a model without weights; rank 0 of a real run prints them of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Set
from typing import Any

import torch

from flava_ds.config import Config
from flava_ds.data.loader import StepLoader
from flava_ds.data.round_robin import steps_of
from flava_ds.errors import ConfigError, number_of
from flava_ds.layers.transformer import Block
from flava_ds.training.engine_config import merged_settings, zero_stage
from flava_ds.training.freezing import built
from flava_ds.training.task import Task
from flava_ds.weightless import weightless

GIB = 2**30
SUMMANDS_IN_BF16 = 128
"""How many micro-batches' gradients bf16 adds up within 1.5 %. Its 8 bits add nothing of what is 1/256 of
a sum: of gradients that agree, it is 5 % off at 256 and 18 % at 512.
"""


def preview(config: Config, task: Task, loader: StepLoader, ranks: int, device_type: str) -> list[str]:
    """Returns the lines; `task` may be on the meta device. The loader knows at which step the run begins."""
    return [
        parameters(task, _fed(config, loader)),
        data(config, loader),
        memory(config, task, ranks, device_type),
        first_line(config, task, loader),
        *unused_evaluation(config),
        *unfollowed(config, task),
        *rounded_sums(config),
    ]


def parameters(task: Task, fed: Set[str]) -> str:
    """Counts the trainable parameters of the model's parts and of the objectives' heads, and those among them
    that no objective trains at the step kinds of drawn sources, `fed`.
    """
    users = task.users()
    sizes = {name: _numel(own) for name, own in task.named_parameters() if own.requires_grad}
    idle = {name: size for name, size in sizes.items() if not users[name] & fed}
    told = f"; of these nothing trains {_by_part(idle)}" if idle else ""
    if frozen := {name: _numel(own) for name, own in task.named_parameters() if not own.requires_grad}:
        told += f"; frozen, beside these, {_by_part(frozen)}"
    return f"parameters: {_by_part(sizes)}{told}"


def _by_part(sizes: dict[str, int]) -> str:
    """Adds up parameters by their names, in all and of each part."""
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        words = name.split(".")
        part = words[1] if words[0] == "model" else f"head of {words[1]}"
        parts[part] = parts.get(part, 0) + size
    listed = ", ".join(f"{name} {_millions(count)}" for name, count in sorted(parts.items(), key=_largest))
    return f"{_millions(sum(sizes.values()))} ({listed})"


def data(config: Config, loader: StepLoader) -> str:
    """Says of every source how large it is, how many steps pass over it once, and how often the run does."""
    return (
        "data: "
        + "; ".join(
            _source(
                config.global_batch_size(name),
                source.length,
                steps_of(loader.stages, name, config.training.total_steps),
                name,
            )
            for name, source in loader.sources.items()
        )
        + own_batches(config)
    )


def own_batches(config: Config) -> str:
    """Says which sources keep a batch size of their own, whatever training.global_batch_size is, a setting
    that users change first.
    """
    usual, sources = config.training.global_batch_size, config.drawn_sources
    sizes = {name: source.global_batch_size for name, source in sources.items()}
    own = {name: size for name, size in sizes.items() if size not in (None, usual)}
    if not own:
        return ""
    options = ", ".join(f"--data.sources.{name}.global-batch-size {size}" for name, size in own.items())
    if len(own) < len(sources):
        return f"; not all take training.global_batch_size {usual:,}, some keep their own: {options}"
    return f"; training.global_batch_size {usual:,} has no effect, as every source has its own: {options}"


def unused_evaluation(config: Config) -> list[str]:
    """Says so if evaluations are set up but never run."""
    own = config.evaluation
    if own.every_steps or not (own.tasks or own.references):
        return []
    return ["evaluation: none during training, as evaluation.every_steps is 0; the tasks are not run"]


def unfollowed(config: Config, task: Task) -> list[str]:
    """Names the settings of transformers that nothing in the model follows, as in a family that has none of
    flava_ds/layers.
    """
    training, parts = config.training, [*task.modules()]
    followed = {
        "activation_checkpointing": any(getattr(part, "activation_checkpointing", False) for part in parts),
        "recompute_gelu": any(hasattr(part, "recompute_gelu") for part in parts),
        "compile_blocks": any(isinstance(part, Block) for part in parts),
    }
    return [
        f"training.{name}: changes nothing, as no part of the model is a transformer of flava_ds/layers"
        for name, is_followed in followed.items()
        if getattr(training, name) and not is_followed
    ]


def rounded_sums(config: Config) -> list[str]:
    """Says so if a step adds up more micro-batches than bf16 can."""
    count = config.training.gradient_accumulation_steps
    sums = "fp32" if config.training.accumulate_in_fp32 else config.training.precision
    if sums != "bf16" or count <= SUMMANDS_IN_BF16:
        return []
    return [
        f"training.gradient_accumulation_steps: {count} micro-batches' gradients are added up in bf16, which "
        f"loses more and more of them from {SUMMANDS_IN_BF16} on; --training.accumulate-in-fp32 keeps "
        "them, as do larger micro-batches (training.activation_checkpointing makes room)"
    ]


def _source(batch: int, length: int | None, steps: float, name: str) -> str:
    if length is None:
        return f"{name} is a stream of unknown length, {steps:,.0f} steps of {batch:,}"
    per_epoch, drawn = length / batch, f"{steps:,.{0 if steps >= 10 else 1}f}"
    return (
        f"{name} {length:,} samples, {per_epoch:,.1f} steps an epoch at {batch:,}, {drawn} steps = "
        f"{steps / per_epoch:,.1f} epochs"
    )


def memory(config: Config, task: Task, ranks: int, device_type: str) -> str:
    """Estimates what a rank holds: weights, gradients and the optimizer's state exactly, by ZeRO stage, and
    the activations of its largest micro-batch by rule of thumb.
    """
    stage = zero_stage(merged_settings(config, ranks, device_type))
    held = bytes_of_state(config, task, ranks, stage)
    activations = max(
        (bytes_of_activations(config, task, name, ranks, device_type) for name in config.drawn_sources),
        default=0,
    )
    about = f"{_size(held)} of weights, gradients and optimizer (ZeRO {stage}, {number_of(ranks, 'rank')})"
    if not activations:
        return f"memory of a rank: {about}; activations are not estimated for this family"
    return (
        f"memory of a rank, an estimate: {_size(held + activations)} = {about} + {_size(activations)} of "
        "activations of the largest micro-batch; libraries and loader processes come on top"
    )


def bytes_of_state(config: Config, task: Task, ranks: int, stage: int) -> float:
    """Returns the bytes of a rank's weights, gradients, fp32 copies and moments under a ZeRO stage."""
    trained = sum(_numel(parameter) for parameter in task.parameters() if parameter.requires_grad)
    frozen = sum(_numel(parameter) for parameter in task.parameters() if not parameter.requires_grad)
    width = 4 if config.training.precision == "fp32" else 2
    try:
        optimizer = config.optimizer.build([{"params": [torch.nn.Parameter(torch.empty(0))]}])
        moments = len(getattr(optimizer, "moments", ()))
    except ConfigError:
        moments = 2  # a vendor's Adam, whose library is on another machine than this one
    moments += config.training.weight_average > 0
    # the optimizer moves fp32 weights: a copy beside those in half precision, and ZeRO's flat one
    copy = 4 if width == 2 or stage else 0
    divided = {"optimizer": 1 <= stage, "gradients": 2 <= stage, "weights": 3 <= stage}
    gradient = 4 if config.training.accumulate_in_fp32 else width
    each = {"optimizer": copy + 4 * moments, "gradients": gradient, "weights": width}
    return width * frozen + sum(
        trained * size / (ranks if divided[what] else 1) for what, size in each.items()
    )


def bytes_of_activations(config: Config, task: Task, name: str, ranks: int, device_type: str) -> float:
    """Estimates what the backward pass of a source's micro-batch needs, texts taken at their longest.

    Eight vectors of the hidden and two of the MLP's width for each token and layer; on a CPU, attention's
    probabilities as well. With activation checkpointing, each layer's input alone.
    """
    source, size = config.data.sources[name], config.micro_batch_size(name, ranks)
    masked = any("_masked" in view for own in task.active(source.step_kind).values() for view in own.needs)
    passes = 1 + source.masked_share if masked and source.kind == "pair" else 1.0
    width, total = 4 if config.training.precision == "fp32" else 2, 0.0
    for shape, tokens in _encoders(config, source):
        fused = not (hasattr(shape, "num_patches") or hasattr(shape, "max_position_embeddings"))
        values = 8 * shape.hidden_size + 2 * shape.intermediate_size
        if config.training.activation_checkpointing:
            values = shape.hidden_size
        elif device_type == "cpu":
            values += shape.num_attention_heads * tokens
        rows = size * tokens * (source.masked_share if fused else passes)
        total += width * rows * shape.num_hidden_layers * values
    return total


def _encoders(config: Config, source: Any) -> Iterator[tuple[Any, int]]:
    """Yields the encoders that a source's batches pass through, with the tokens of a sample there."""
    holds, model = config.model.kinds[source.step_kind], config.model
    if (own := model.stacks(source)) is not None:
        yield from own
        return
    shapes = [getattr(model, field.name) for field in dataclasses.fields(model)]
    image = next((1 + shape.num_patches for shape in shapes if hasattr(shape, "num_patches")), 0)
    for shape in shapes:
        if not hasattr(shape, "num_hidden_layers"):
            continue
        if hasattr(shape, "num_patches"):
            tokens = image if holds != "text" else 0
        elif hasattr(shape, "max_position_embeddings"):
            regions = source.max_regions if source.regions_key else 0
            tokens = source.max_tokens + regions if holds != "image" else 0
        else:
            tokens = 1 + image + source.max_tokens if holds == "pair" else 0
        if tokens:
            yield shape, tokens


def first_line(config: Config, task: Task, loader: StepLoader) -> str:
    """Shows what the log's first line will look like, and which objectives nothing feeds."""
    total, start = config.training.total_steps, loader.start_step
    if start >= total:
        return (
            f"nothing is left to train: this run has done {start} steps, training.total_steps is {total}; "
            "raise it, or pick another --name"
        )
    every = config.logging.every_steps or total
    steps = min(every - start % every + start, total)
    first = range(start, min(steps, start + 1000))
    sources = config.data.sources
    drawn = {sources[loader.round_robin.source_at(step)].step_kind for step in first}
    fed = _fed(config, loader)
    losses = [name for name, own in task.objectives.items() if own.kinds & drawn]
    idle = [name for name, own in task.objectives.items() if not own.kinds & fed]
    line = (
        f"step {steps}/{total} | {' '.join(f'{name} ...' for name in losses)} | ... "
        "samples/s | data wait ...% | ... FLOP/s = ...% of GEMM rate | ... GiB | ETA h:mm:ss"
    )
    without = f"; {', '.join(idle)}: idle, as no source has {' or '.join(_kinds(task, idle))}" if idle else ""
    resumed = f"goes on after step {start} of {total}; " if start else ""
    return f"{resumed}the log begins with: {line}{without}"


def _fed(config: Config, loader: StepLoader) -> set[str]:
    """Returns the step kinds that the run draws at some step."""
    return {config.data.sources[name].step_kind for name in loader.sources}


def _kinds(task: Task, names: list[str]) -> list[str]:
    return sorted({str(kind) for name in names for kind in task.objectives[name].kinds})


def _numel(parameter: Any) -> int:
    """Returns a parameter's elements, of a part that ZeRO 3 has divided too."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _largest(entry: tuple[str, int]) -> int:
    return -entry[1]


def _size(count: float) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def meta_task(config: Config) -> Task:
    """Builds the model with its objectives without any weights: shapes alone."""
    with weightless():
        return built(config)
