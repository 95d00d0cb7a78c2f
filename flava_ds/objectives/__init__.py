"""The objectives of joint pre-training."""

from __future__ import annotations

from torch import nn

from flava_ds.config import Config
from flava_ds.layers.heads import MaskedPredictionHead, MatchingHead
from flava_ds.objectives.base import Objective
from flava_ds.objectives.global_contrastive import GlobalContrastive
from flava_ds.objectives.itm import ImageTextMatching
from flava_ds.objectives.masked_image import MaskedImageModeling, MultimodalMaskedImageModeling
from flava_ds.objectives.masked_text import MaskedLanguageModeling, MultimodalMaskedLanguageModeling

__all__ = ["Objective", "build_objectives"]


def build_objectives(config: Config) -> nn.ModuleDict:
    """Builds every objective of positive weight with its head; unimodal heads take their encoder's width, the others the fused one."""
    model, objectives, codes = config.model, config.objectives, config.codebook.vocab_size

    def head(encoder, vocab_size: int) -> MaskedPredictionHead:
        return MaskedPredictionHead(encoder.hidden_size, vocab_size, encoder.layer_norm_eps)

    builders = {
        "global_contrastive": lambda c: GlobalContrastive(c),
        "mim": lambda c: MaskedImageModeling(c, head(model.image, codes)),
        "mlm": lambda c: MaskedLanguageModeling(c, head(model.text, model.text.vocab_size)),
        "mmm_image": lambda c: MultimodalMaskedImageModeling(c, head(model.multimodal, codes)),
        "mmm_text": lambda c: MultimodalMaskedLanguageModeling(c, head(model.multimodal, model.text.vocab_size)),
        "itm": lambda c: ImageTextMatching(c, MatchingHead(model.multimodal.hidden_size)),
    }
    return nn.ModuleDict({name: build(getattr(objectives, name)) for name, build in builders.items() if getattr(objectives, name).weight > 0})
