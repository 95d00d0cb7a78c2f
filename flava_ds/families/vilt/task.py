"""ViLT with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.building import rows_read, seeded, terms
from flava_ds.families.vilt.config import ViltConfig
from flava_ds.families.vilt.model import TEXTS, Vilt, initialize
from flava_ds.layers.work import encoder_flops, head_flops, patch_flops
from flava_ds.objectives.itm import ImageTextMatching
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.training.task import Pass, Task, built_objectives


class ViltTask(Task):
    """ViLT and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(Vilt(ViltConfig.of(config)), objectives)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model = ViltConfig.of(self.config)
        image, read = model.image, rows_read(self, batch)
        yield Pass("patch_embedding", patch_flops(image, batch.size * image.num_patches))
        for view, (_, prefix) in TEXTS.items():
            if view in read:
                texts = batch[f"{prefix}cu_seqlens"].diff().tolist()
                lengths = [1 + image.num_patches + length for length in texts]
                yield Pass(view, encoder_flops(image, lengths, read[view]))
        masked, matched = terms(self, batch, MaskedLanguageModeling), terms(self, batch, ImageTextMatching)
        yield Pass("mmm_text", masked * head_flops(image.hidden_size, model.text.vocab_size))
        yield Pass("itm", matched * 2 * image.hidden_size * (image.hidden_size + 2))


def build_task(config: Config) -> ViltTask:
    """Builds ViLT and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(ViltTask, config, lambda task: initialize(task, ViltConfig.of(config).initializer_range))
