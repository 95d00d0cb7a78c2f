"""SimVLM with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.building import seeded
from flava_ds.families.simvlm.config import SimvlmConfig
from flava_ds.families.simvlm.model import Simvlm, initialize
from flava_ds.layers.work import cross_attention_flops, encoder_flops
from flava_ds.training.batch_norms import BatchNormTask
from flava_ds.training.task import Pass, built_objectives


class SimvlmTask(BatchNormTask):
    """SimVLM and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        model = SimvlmConfig.of(config)
        super().__init__(Simvlm(model), objectives, model.image.norm_momentum)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model, patches = SimvlmConfig.of(self.config), 0
        image, width = model.image, model.encoder.hidden_size
        suffixes = batch["suffix_cu_seqlens"].diff()
        if "pixel_values" in batch:
            patches = image.num_patches
            yield Pass("image_tower", batch.size * self.model.image_tower.flops(image.image_size))
            channels = self.model.image_tower.channels
            yield Pass("projection", 2 * batch.size * patches * channels * width)
        read = (patches + batch["cu_seqlens"].diff() - suffixes).tolist()
        yield Pass("encoder", encoder_flops(model.encoder, read))
        written = suffixes.tolist()
        decoder = encoder_flops(model.decoder, written, causal=True)
        yield Pass("decoder", decoder + cross_attention_flops(model.decoder, written, read))
        yield Pass("classifier", 2 * int(suffixes.sum()) * width * model.text.vocab_size)


def build_task(config: Config) -> SimvlmTask:
    """Builds SimVLM and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(SimvlmTask, config, lambda task: initialize(task.model))
