"""UniT with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.config.objectives import in_use
from flava_ds.errors import ConfigError
from flava_ds.families.building import seeded
from flava_ds.families.unit.config import TASKS, UnitConfig
from flava_ds.families.unit.model import Unit, initialize
from flava_ds.layers.work import cross_attention_flops, encoder_flops
from flava_ds.objectives.base import world_size
from flava_ds.training.batch_norms import BatchNormTask
from flava_ds.training.task import Pass, StepOutput


class UnitTask(BatchNormTask):
    """UniT and its objectives, one for each task."""

    def __init__(self, config: Config) -> None:
        used: Mapping[str, Any] = in_use(config.objectives)  # those of tasks have queries
        queries: dict[str, int] = {}
        for name, own in used.items():
            where = f"objectives.{name}"
            if own.targets is None:
                raise ConfigError(
                    f"{where} reads no labels, and all that the family 'unit' trains are tasks with labels; "
                    "leave it out"
                ).everywhere()
            config.model.check_view(own.task, where)
            if own.task in queries:
                raise ConfigError(f"{where}: task '{own.task}' has another objective; leave one out")
            queries[own.task] = own.num_queries
        objectives = {name: own.build(config) for name, own in used.items()}
        model = UnitConfig.of(config)
        super().__init__(Unit(model, queries), objectives, model.image.norm_momentum)
        self.config = config

    def told(self, batch: Batch, terms: Mapping[str, Any], samples: int) -> Batch:
        """Tells the step's one objective how many terms and samples the step has."""
        [name] = self.active(batch.kind)
        found = torch.as_tensor(terms[name], dtype=torch.float32, device=batch["target_labels"].device)
        told = batch.having(step_terms=found)
        return replace(told, numbers={**batch.numbers, "step_samples": samples})

    def step(self, batch: Batch, denominators: Mapping[str, Tensor], *arguments: Any) -> StepOutput:
        """Returns a micro-batch's part of the step's loss, whose one objective is told of the step."""
        terms = {name: own * world_size() for name, own in denominators.items()}
        batch = self.told(batch, terms, self.config.global_batch_size(batch.source))
        return super().step(batch, denominators, *arguments)

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model, size, task = UnitConfig.of(self.config), batch.size, batch.kind
        decoder, seen = model.decoder, [0] * size
        if TASKS[task] != "text":
            image, tower, width = model.image, self.model.image_tower, model.encoder.hidden_size
            cells = image.num_patches
            yield Pass("image_tower", size * tower.flops(image.image_size))
            yield Pass("projection", 2 * size * cells * tower.channels * width)
            yield Pass("encoder", encoder_flops(model.encoder, [1 + cells] * size))
            yield Pass("image_memory", 2 * (size + 1) * cells * width * decoder.hidden_size)
            seen = [cells] * size
        if TASKS[task] != "image":
            lengths = batch["cu_seqlens"].diff().tolist()
            read = [1] * size if task in model.first_word_only else lengths
            yield Pass("text_encoder", encoder_flops(model.text, [1 + own for own in lengths], sum(read)))
            yield Pass("text_memory", 4 * sum(read) * model.text.hidden_size * decoder.hidden_size)
            seen = [own + other for own, other in zip(seen, read, strict=True)]
        asked = [self.model.counts[task]] * size
        work = encoder_flops(decoder, asked) + cross_attention_flops(decoder, asked, seen)
        yield Pass("decoder", work)


def build_task(config: Config) -> UnitTask:
    """Builds UniT and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(UnitTask, config, lambda task: initialize(task.model))
