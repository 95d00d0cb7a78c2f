"""ALIGN with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.align.config import AlignConfig
from flava_ds.families.align.model import Align, initialize
from flava_ds.families.building import seeded
from flava_ds.layers.work import encoder_flops
from flava_ds.training.batch_norms import BatchNormTask
from flava_ds.training.task import Pass, built_objectives


class AlignTask(BatchNormTask):
    """ALIGN and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        model = AlignConfig.of(config)
        super().__init__(Align(model), objectives, model.image.norm_momentum)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model = AlignConfig.of(self.config)
        yield Pass("image_encoder", batch.size * self.model.image_encoder.flops(model.image.image_size))
        lengths = batch["cu_seqlens"].diff().tolist()
        yield Pass("text_encoder", encoder_flops(model.text, lengths, batch.size))
        yield Pass("text_projection", 2 * batch.size * model.projection_dim * model.text.hidden_size)


def build_task(config: Config) -> AlignTask:
    """Builds ALIGN and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(AlignTask, config, lambda task: initialize(task.model))
