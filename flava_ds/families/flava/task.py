"""FLAVA with its objectives: construction, codebook targets, and the FLOPs of its batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.profiler import record_function

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.families.building import seeded
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.families.flava.model import Flava, initialize
from flava_ds.families.flava.views import Kind, View, is_share
from flava_ds.layers.work import encoder_flops, head_flops, patch_flops
from flava_ds.objectives.itm import ImageTextMatching
from flava_ds.objectives.masked_image import MaskedImageModeling
from flava_ds.objectives.masked_text import MaskedLanguageModeling
from flava_ds.training.task import Pass, Task, built_objectives

CODEBOOK = "codebook"


class FlavaTask(Task):
    """FLAVA and its objectives. `frozen["codebook"]` computes targets if the data has no codes."""

    def __init__(self, config: Config) -> None:
        objectives = built_objectives(config)
        super().__init__(Flava(FlavaConfig.of(config)), objectives)
        self.config, self.flava = config, FlavaConfig.of(config)

    def complete(self, batch: Batch) -> Batch:
        """Adds `image_codes` [m n], the codebook's indices, to a batch that has the codebook's pixels."""
        batch = super().complete(batch)
        if "codebook_pixel_values" not in batch or CODEBOOK not in self.frozen:
            return batch
        with torch.no_grad(), record_function("image codebook"):  # a profile's kernels do not tell
            return batch.having(image_codes=self.frozen[CODEBOOK].encode(batch["codebook_pixel_values"]))

    def target_flops(self, batch: Batch) -> float:
        """Counts the codebook's encoder on the images whose codes the data does not have."""
        if "codebook_pixel_values" not in batch or CODEBOOK not in self.frozen:
            return 0.0
        return batch["codebook_pixel_values"].shape[0] * self.frozen[CODEBOOK].flops_per_image

    def passes(self, batch: Batch) -> Iterator[Pass]:
        if batch.kind == Kind.PAIR:
            yield from self._clean_pair(batch)
            yield from self._masked_pair(batch)
        elif batch.kind == Kind.IMAGE and "mim_rows" in batch:
            image, rows = self.flava.image, _count(batch, "mim_rows")
            yield self._patches(batch.size)
            yield Pass("image_encoder", encoder_flops(image, self._image_lengths(batch.size), rows))
            yield Pass("mim", rows * head_flops(image.hidden_size, self.config.codebook.vocab_size))
        elif batch.kind == Kind.TEXT and "mlm_rows" in batch:
            text, rows = self.flava.text, _count(batch, "mlm_rows")
            yield Pass("text_encoder", encoder_flops(text, _lengths(batch, "cu_seqlens"), rows))
            yield Pass("mlm", rows * head_flops(text.hidden_size, text.vocab_size))

    def _clean_pair(self, batch: Batch) -> Iterator[Pass]:
        """Lists the contrastive passes of a pair batch, and its patches, which are embedded once for both
        versions unless only a share is masked.
        """
        model, views = self.flava, self._views(Kind.PAIR)
        if View.IMAGE in views or not is_share(batch):
            yield self._patches(batch.size)
        if View.IMAGE in views:
            yield Pass(
                "image_encoder", encoder_flops(model.image, self._image_lengths(batch.size), batch.size)
            )
        if View.TEXT in views:
            yield Pass("text_encoder", encoder_flops(model.text, _lengths(batch, "cu_seqlens"), batch.size))
        if {View.IMAGE, View.TEXT} <= views:
            widths = model.image.hidden_size + model.text.hidden_size
            yield Pass("projections", 2 * batch.size * model.projection_dim * widths)

    def _masked_pair(self, batch: Batch) -> Iterator[Pass]:
        """Lists the masked and fused passes of a pair batch; a masked share embeds its patches again."""
        if View.MULTIMODAL_MASKED not in self._views(Kind.PAIR):
            return
        own = self.active(Kind.PAIR).values()
        kinds = MaskedImageModeling, MaskedLanguageModeling, ImageTextMatching
        with_image, with_text, with_matching = (any(isinstance(o, kind) for o in own) for kind in kinds)
        model, share = self.flava, is_share(batch)
        size = batch["masked_samples"].shape[0] if share else batch.size
        images = self._image_lengths(size)
        texts = _lengths(batch, "masked_cu_seqlens" if share else "cu_seqlens")
        patches, tokens = _count(batch, "mim_rows"), _count(batch, "mlm_rows")
        fused = model.multimodal.hidden_size
        if share:
            yield self._patches(size)
        yield Pass("image_encoder", encoder_flops(model.image, images))
        yield Pass("text_encoder", encoder_flops(model.text, texts))
        inputs = sum(images) * model.image.hidden_size + sum(texts) * model.text.hidden_size
        yield Pass("to_multimodal", 2 * fused * inputs)
        read = with_image * patches + with_text * tokens + with_matching * size
        lengths = [1 + a + b for a, b in zip(images, texts, strict=True)]
        yield Pass("multimodal_encoder", encoder_flops(model.multimodal, lengths, read))
        yield Pass("mmm_image", with_image * patches * head_flops(fused, self.config.codebook.vocab_size))
        yield Pass("mmm_text", with_text * tokens * head_flops(fused, model.text.vocab_size))
        yield Pass("itm", with_matching * size * 2 * fused * (fused + 2))

    def _views(self, kind: str) -> frozenset[str]:
        """Returns the views that objectives read in steps of a kind."""
        return frozenset().union(*(objective.needs for objective in self.active(kind).values()))

    def _patches(self, images: int) -> Pass:
        image = self.flava.image
        return Pass("patch_embedding", patch_flops(image, images * image.num_patches))

    def _image_lengths(self, images: int) -> list[int]:
        return [1 + self.flava.image.num_patches] * images


def _lengths(batch: Batch, name: str) -> list[int]:
    return batch[name].diff().tolist()


def _count(batch: Batch, name: str) -> int:
    return batch.listed(name) if name in batch else 0


def build_task(config: Config) -> FlavaTask:
    """Builds FLAVA and its objectives, initialised from config.seed, independent of the global generator."""
    return seeded(FlavaTask, config, lambda task: initialize(task, FlavaConfig.of(config).initializer_range))
