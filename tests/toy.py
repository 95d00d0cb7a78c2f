"""A stand-in for the pre-training module: three encoders in three step kinds, with the shapes of trouble that
ZeRO meets.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config, EngineConfig, TrainingConfig
from flava_ds.config.schedules import CosineScheduleConfig
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.views import Kind
from flava_ds.optimizers.adamw import AdamWConfig
from flava_ds.training.engine import Engine
from flava_ds.training.engine_config import shipped_settings
from flava_ds.training.task import StepOutput
from flava_ds.training.watcher import Update

WIDTH = 12


@dataclass(frozen=True)
class Hidden:
    """A module's output inside a dataclass, as Packed is."""

    hidden: Tensor


class Encoder(nn.Module):
    """Owns a parameter directly, besides its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(WIDTH) * 0.1)
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.second = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Hidden) -> Hidden:
        x = (hidden.hidden + self.cls_token).sin() * self.gain
        return Hidden(x + self.second(F.gelu(self.first(x))))


class Head(nn.Module):
    """Reads its decoder's weight without calling the decoder, as the fused cross-entropy does."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, classes)

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.tanh(self.dense(hidden)) @ self.decoder.weight.t() + self.decoder.bias
        logits = logits.float()
        return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum().float()


class Toy(nn.Module):
    """Image steps train mim, text steps mlm, pair steps mmm_text and itm through all three encoders; `dead`
    is used by none.
    """

    by_kind = {Kind.IMAGE: ("mim",), Kind.TEXT: ("mlm",), Kind.PAIR: ("mmm_text", "itm")}
    objectives = ("mim", "mlm", "mmm_text", "itm")
    metrics = {name: {"correct": "accuracy"} for name in objectives}
    kinds = ("image", "pair", "text")
    states = {}
    weights = {"mim": 1.0, "mlm": 1.0, "mmm_text": 0.7, "itm": 1.3}

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.frozen, self.fingerprints = {}, {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image_encoder, self.text_encoder, self.multimodal_encoder = Encoder(), Encoder(), Encoder()
            self.mim, self.mlm, self.mmm_text, self.itm = Head(7), Head(9), Head(9), Head(2)
            self.logit_scale = nn.Parameter(torch.tensor(0.3))
            self.dead = nn.Linear(5, 3)

    def first_steps(self) -> dict[str, int]:
        return {}

    def counts(self, batch: Batch) -> dict[str, int]:
        rows = {
            "mim": batch["mim_rows"],
            "mlm": batch["mlm_rows"],
            "mmm_text": batch["mlm_rows"],
            "itm": batch["itm_labels"],
        }
        return {name: rows[name].shape[0] for name in self.by_kind[batch.kind]}

    def forward(self, entry: str, *arguments) -> StepOutput:
        return getattr(self, entry)(*arguments)

    def complete(self, batch: Batch) -> Batch:
        return batch

    def pooled(self, kind: str) -> dict:
        return {}

    def flops(self, batch: Batch) -> float:
        return 1.0

    def target_flops(self, batch: Batch) -> float:
        return 0.5

    def used_by(self, name: str) -> set[str]:
        """All of pairs, as no encoder is asked about in other steps."""
        return {own for own, _ in self.named_parameters()}

    def encoders(self) -> dict[str, list[nn.Parameter]]:
        return {
            name: list(part.parameters()) for name, part in self.named_children() if name.endswith("_encoder")
        }

    def step(self, batch: Batch, denominators: dict[str, Tensor], gradients: None = None) -> StepOutput:
        losses: dict[str, tuple[Tensor, Tensor]] = {}
        scale = self.logit_scale.exp()
        if batch.kind != Kind.TEXT:
            image = self.image_encoder(Hidden(batch["pixel_values"].to(self.logit_scale.dtype)))
        if batch.kind != Kind.IMAGE:
            text = self.text_encoder(Hidden(batch["input_ids"].to(self.logit_scale.dtype)))
        if batch.kind == Kind.IMAGE:
            losses["mim"] = self.mim.loss(
                image.hidden[batch["mim_rows"]], batch["image_codes"][batch["mim_rows"]]
            )
        elif batch.kind == Kind.TEXT:
            losses["mlm"] = self.mlm.loss(text.hidden[batch["mlm_rows"]], batch["mlm_labels"])
        else:
            fused = self.multimodal_encoder(Hidden(image.hidden + scale * text.hidden))
            losses["mmm_text"] = self.mmm_text.loss(fused.hidden[batch["mlm_rows"]], batch["mlm_labels"])
            losses["itm"] = self.itm.loss(fused.hidden, batch["itm_labels"])
        total = torch.stack(
            [self.weights[name] * loss / denominators[name] for name, (loss, _) in losses.items()]
        ).sum()
        sums = {f"{name}/loss": loss.detach() for name, (loss, _) in losses.items()}
        return StepOutput(total, sums | {f"{name}/correct": correct for name, (_, correct) in losses.items()})

    def users(self) -> dict[str, frozenset[Kind]]:
        image, text, pair = Kind.IMAGE, Kind.TEXT, Kind.PAIR
        used = {
            "image_encoder": {image, pair},
            "text_encoder": {text, pair},
            "mim": {image},
            "mlm": {text},
            "dead": set(),
        }
        return {name: frozenset(used.get(name.split(".")[0], {pair})) for name, _ in self.named_parameters()}


def toy_batch(kind: Kind, step: int, rank: int, micro_step: int, size: int = 4) -> Batch:
    """A random batch, a function of its arguments; the number of masked rows differs between ranks and
    micro-steps.
    """
    draw = torch.Generator().manual_seed(1000 * step + 100 * rank + 10 * micro_step + 1)
    rows = torch.randperm(size, generator=draw)[: 1 + (step + rank + micro_step) % size].sort().values
    features = torch.randn(size, WIDTH, generator=draw), torch.randn(size, WIDTH, generator=draw)
    return Batch(
        kind=kind,
        source=kind.value,
        size=size,
        tensors={
            "pixel_values": features[0],
            "image_codes": torch.randint(0, 7, (size,), generator=draw),
            "mim_rows": rows,
            "input_ids": features[1],
            "mlm_rows": rows,
            "mlm_labels": torch.randint(0, 9, (rows.shape[0],), generator=draw),
            "itm_labels": torch.randint(0, 2, (size,), generator=draw),
        },
    )


def partition_everything(folder: Path, name: str = "zero3") -> str:
    """Writes a ZeRO-3 file that keeps no small parameter whole, as the shipped one would with a toy, and
    returns its path.
    """
    settings = json.loads(shipped_settings()[name].read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"{name}_all.json"
    path.write_text(json.dumps(settings))
    return str(path)


def toy_config(deepspeed_config: str = "zero1", **training) -> Config:
    """A run of the toy; eps is large, since key biases and the like have rounding noise as gradient."""
    defaults = {"total_steps": 12, "global_batch_size": 8, "precision": "fp32", "gradient_clipping": 0.5}
    return Config(
        name="toy",
        objectives=flava_objectives(),
        training=TrainingConfig(**{**defaults, **training}),
        optimizer=AdamWConfig(lr=1e-2, eps=1e-4, weight_decay=0.1),
        schedule=CosineScheduleConfig(warmup_steps=3, min_lr=1e-4),
        engine=EngineConfig(deepspeed_config=deepspeed_config, communication_timeout_s=60),
    )


KINDS = (Kind.IMAGE, Kind.TEXT, Kind.PAIR, Kind.IMAGE, Kind.IMAGE, Kind.TEXT, Kind.PAIR, Kind.TEXT, Kind.PAIR)
"""A round robin for tests."""


def objective_counts(module: Toy, batches: list[Batch]) -> dict[str, int]:
    """Counts summed over batches."""
    counts = [module.counts(batch) for batch in batches]
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def gradients_alone(
    module: Toy, batch: Batch, denominators: dict[str, Tensor]
) -> dict[tuple[str, str], Tensor]:
    """Flat gradients by (encoder, objective), each of one objective's loss without the others."""
    found = {}
    for name in denominators:
        Toy.weights, kept = {k: v if k == name else 0.0 for k, v in Toy.weights.items()}, Toy.weights
        for encoder in ("image_encoder", "text_encoder", "multimodal_encoder"):
            gradients = torch.autograd.grad(
                module("step", batch, denominators).loss,
                list(getattr(module, encoder).parameters()),
                allow_unused=True,
                materialize_grads=True,
            )
            found[encoder, name] = torch.cat([gradient.flatten() for gradient in gradients])
        Toy.weights = kept
    return found


def full_weights(engine: Engine) -> dict[str, Tensor]:
    """Every parameter by name, whole and in fp32, as DeepSpeed itself puts it together; all ranks call it."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad and engine.stage > 0 else None
        if full is None:
            with deepspeed.zero.GatheredParameters([parameter]) if engine.stage == 3 else nullcontext():
                full = parameter.detach().float().clone()
        weights[name] = full.detach().reshape(engine.shape_of(parameter)).clone()
    return weights


def update_of(**changed) -> Update:
    """What watchers are told of a step; its fields have values of no meaning unless they are given."""
    fields = {
        **{
            "step": 0,
            "kind": "text",
            "source": "books",
            "lr": 0.1,
            "counts": {},
            "denominators": {},
            "batches": [],
        },
        **{"flops": 1e6, "target_flops": 5e5, "waited_s": 0.0},
        **{"loss": torch.tensor(1.0), "grad_norm": torch.tensor(0.5)},
    }
    return Update(**(fields | changed))
