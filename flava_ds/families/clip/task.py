"""CLIP with its objectives: construction, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.building import seeded
from flava_ds.families.clip.config import ClipConfig
from flava_ds.families.clip.model import Clip, initialize
from flava_ds.layers.work import encoder_flops, patch_flops
from flava_ds.training.task import Pass, Task, built_objectives


class ClipTask(Task):
    """CLIP and its objectives."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(Clip(ClipConfig.of(config)), objectives)
        self.config = config

    def passes(self, batch: Batch) -> Iterator[Pass]:
        model = ClipConfig.of(self.config)
        image, text = model.image, model.text
        yield Pass("patch_embedding", patch_flops(image, batch.size * image.num_patches))
        present = batch.get("present_rows")
        rows = 1 + image.num_patches if present is None else present.shape[1]
        yield Pass("image_encoder", encoder_flops(image, [rows] * batch.size, batch.size))
        lengths = batch["cu_seqlens"].diff().tolist()
        yield Pass("text_encoder", encoder_flops(text, lengths, batch.size, causal=True))
        yield Pass(
            "projections", 2 * batch.size * model.projection_dim * (image.hidden_size + text.hidden_size)
        )


def build_task(config: Config) -> ClipTask:
    """Builds CLIP and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(ClipTask, config, lambda task: initialize(task.model))
