"""Measures a recipe on the meta device: parameters, FLOPs, operators and bytes of every source's step.

Nothing here knows a family. A recipe's task is built without memory, takes a step of each source on batches
of two sizes, and every number is put through the two points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.config import Config
from flava_ds.errors import ConfigError, told_at
from flava_ds.optimizers.base import parameter_groups
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.synthetic import batch_of
from flava_ds.scaling.trace import Call, Trace, trace_step
from flava_ds.scaling.work import Amount, KindWork, ModelWork, Operator, ParameterGroup, fitted
from flava_ds.training.freezing import built
from flava_ds.training.task import Task, fold_biases
from flava_ds.weightless import weightless

SAMPLES = 64
"""Of the smaller batch; the larger one has each of them twice."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
META = torch.device("meta")


def measure(
    config: Config,
    lengths: dict[str, Lengths],
    *,
    device: torch.device = META,
    samples: int | Mapping[str, int] = SAMPLES,
) -> ModelWork:
    """Returns what the steps of `config` cost; `lengths` holds the texts of every source that has some.

    With another device than meta, real tensors of `samples` and twice as many samples go through the step,
    by that device's own operators, which are then those of `samples` alone. `samples` may differ by source.

    Raises: ConfigError when the recipe cannot be built.
    """
    with weightless() if device == META else device:
        task = built(config)
        codebook = ImageCodebook(config.codebook, decoder=False) if config.computes_image_codes else None
    task.to(DTYPES[config.training.precision]).train()
    fold_biases(task, device == META)  # as the engine does on GPUs; ZeRO-3 alone does not
    teachers = teachers_of(task)
    for teacher in teachers:
        teacher.to(device, DTYPES[config.training.precision])
    if codebook is not None:
        half = config.training.precision == "bf16" and device.type != "cpu"
        codebook.to(DTYPES["bf16" if half else "fp32"]).requires_grad_(False).eval()
        task.frozen["codebook"] = codebook
    counts = dict.fromkeys(config.drawn_sources, samples) if isinstance(samples, int) else samples
    try:
        kinds = {
            name: kind_work(config, task, name, lengths.get(name), device, counts[name])
            for name in config.drawn_sources
        }
    except (RuntimeError, NotImplementedError) as error:
        if device != META or "meta" not in str(error):
            raise
        raise ConfigError(
            f"{config.name} cannot be planned: steps are planned without numbers, on torch's meta device, "
            f"and {told_at(error)}; take sizes from shapes, batch.size and batch.numbers, which have values"
        ) from error
    trainable = sum(p.numel() for p in task.parameters() if p.requires_grad)
    return ModelWork(
        recipe=config.name,
        groups=groups_of(task, config),
        frozen=sum(p.numel() for module in (task, *teachers) for p in module.parameters()) - trainable,
        encoders=parts_of(task),
        codebook=0 if codebook is None else sum(p.numel() for p in codebook.parameters()),
        kinds=kinds,
        moments=moments_of(config),
    )


def teachers_of(task: Task) -> list[nn.Module]:
    """Returns the networks that training states keep beside the task's parameters."""
    held = (value for state in task.states.values() for value in vars(state).values())
    return [value for value in held if isinstance(value, nn.Module)]


def groups_of(task: Task, config: Config) -> tuple[ParameterGroup, ...]:
    """Returns the optimizer's groups, as the engine makes them."""
    return tuple(
        ParameterGroup(
            tuple(group["kinds"]),
            sum(p.numel() for p in group["params"]),
            tuple(p.numel() for p in group["params"]),
        )
        for group in parameter_groups(task, task.users(), config.optimizer)
    )


def moments_of(config: Config) -> int:
    """Returns how many numbers are kept for each element: the optimizer's, and an average of the weights."""
    example = torch.nn.Parameter(torch.zeros(1))
    group = {"params": [example], "kinds": [], "active": True, "weight_decay": 0.0, "lr": config.optimizer.lr}
    own = len(getattr(config.optimizer.build([group]), "moments", ("unknown", "unknown")))
    return own + (config.training.weight_average > 0)


def parts_of(task: Task) -> dict[str, int]:
    """Returns the trainable elements of each child of the model, and of each objective's head."""
    found: dict[str, int] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        words = name.split(".")
        part = f"head of {words[1]}" if words[0] == "objectives" else words[1]
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def kind_work(
    config: Config, task: Task, name: str, lengths: Lengths | None, device: torch.device, samples: int
) -> KindWork:
    """Returns what a micro-step of source `name` costs."""
    source = config.drawn_sources[name]
    plan = config.model.plan(config, source)
    kind = str(plan.kind)
    variance = 0.0 if lengths is None else float(lengths.quantiles(samples).var())
    steps: list[tuple[Batch, Trace]] = []
    parts: list[dict[str, float]] = []
    frozen: list[float] = []
    for times in (1, 2):
        batch = batch_of(plan, name, lengths, samples, times)
        parts.append(forward_parts(task, batch))
        flops, batch = completed(task, batch.to(device), variance)
        frozen.append(flops)
        if plan.crops and not steps:  # a run maps positions to the grids of its crops once
            step_of(task, batch, device)()
        steps.append(
            (batch, trace_step(task, step_of(task, batch, device), batch.tensors.values(), variance))
        )
    sizes = [batch.size for batch, _ in steps]

    def through(*values: float) -> Amount:
        return fitted((sizes[0], values[0]), (sizes[1], values[1]))

    pooled = task.pooled(kind)
    first = features_flops(task, steps[0][0], variance) if pooled else 0.0
    return KindWork(
        kind=kind,
        source=name,
        # on a CPU the references go through long inputs in pieces, so that calls do not pair up
        operators=operators_of(steps[0][1].calls, steps[1][1].calls, through)
        if device == META
        else operators_of(steps[0][1].calls, steps[0][1].calls, lambda value, _: Amount(value)),
        parts={part: through(value, parts[1][part]) for part, value in parts[0].items()},
        saved=through(*(trace.saved for _, trace in steps)),
        peak=through(*(trace.peak for _, trace in steps)),
        peak_with_gradients=through(*(trace.peak_with_gradients for _, trace in steps)),
        batch_bytes=through(*(bytes_of(batch) for batch, _ in steps)),
        exchanged={
            objective: through(*(sum(own.exchanged_bytes(task.model, size)) for size in sizes))
            for objective, own in pooled.items()
        },
        codebook_flops=through(*frozen),
        features_share=first / max(1.0, sum(parts[0].values())),
        length_deviation=0.0 if lengths is None else lengths.deviation,
        token_share=0.0
        if lengths is None
        else token_share(task, batch_of(plan, name, lengths, samples), parts[0]),
        has_pictures=bool(plan.views or plan.crops),
    )


def forward_parts(task: Task, batch: Batch) -> dict[str, float]:
    """Returns a third of the step's FLOPs by the family's passes and by objective: of what is trained, those
    of the forward pass.
    """
    return {name: flops / 3 for name, flops in task.work(batch).items()}


def token_share(task: Task, batch: Batch, parts: dict[str, float]) -> float:
    """Returns the share of a sample's FLOPs that one more token in its text adds.

    The batch keeps its tensors but for the bounds of its texts, which is all that `passes` reads of lengths.
    """
    longer = {
        name: bounds + torch.arange(len(bounds), dtype=bounds.dtype)
        for name, bounds in batch.tensors.items()
        if name.endswith("cu_seqlens")
    }
    more = sum(forward_parts(task, batch.having(**longer)).values())
    return max(0.0, more / max(1.0, sum(parts.values())) - 1)


def completed(task: Task, batch: Batch, variance: float) -> tuple[float, Batch]:
    """Returns a batch with the targets of frozen networks, and the FLOPs of those."""
    done: list[Batch] = []

    def forward() -> Tensor:
        with torch.no_grad():
            of_step = [task.complete(batch)]
            for state in task.states.values():
                of_step = state.complete_step(of_step)
            done.extend(of_step)
        return torch.zeros((), requires_grad=True)

    trace = trace_step(task, forward, batch.tensors.values(), variance)
    return sum(call.flops for call in trace.calls), done[0]


def step_of(task: Task, batch: Batch, device: torch.device) -> Callable[[], Tensor]:
    """Returns a function that takes the step's forward pass and returns its loss."""
    ones = {name: torch.ones((), device=device) for name in task.active(batch.kind)}
    return lambda: task("step", batch, ones).loss


def features_flops(task: Task, batch: Batch, variance: float) -> float:
    """Returns the FLOPs of the first of the two passes of pooled losses under accumulation."""

    def forward() -> Tensor:
        with torch.no_grad():
            task("features", batch)
        return torch.zeros((), requires_grad=True)

    return sum(call.flops for call in trace_step(task, forward, batch.tensors.values(), variance).calls)


def bytes_of(batch: Batch) -> int:
    """Returns the bytes of a batch's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in batch.tensors.values())


def operators_of(
    small: list[Call], large: list[Call], through: Callable[..., Amount]
) -> tuple[Operator, ...]:
    """Pairs the calls of two traces of one step, and adds up equal ones."""
    assert [call.name for call in small] == [call.name for call in large], (
        "the step depends on its batch size"
    )
    counts: dict[tuple[Any, ...], int] = defaultdict(int)
    for one, two in zip(small, large, strict=True):
        edges: tuple[Amount | None, ...] = (None, None, None)
        if one.product is not None and two.product is not None:
            edges = tuple(through(a, b) for a, b in zip(one.product, two.product, strict=True))
        amounts = through(one.flops, two.flops), through(one.bytes, two.bytes)
        key = (one.name, one.phase, one.custom, *amounts, *edges)
        counts[key] += 1
    return tuple(
        Operator(name, phase, custom, count, flops, moved, rows, columns, inner)
        for (name, phase, custom, flops, moved, rows, columns, inner), count in counts.items()
    )
