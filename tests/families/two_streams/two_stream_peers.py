"""Small LXMERTs of ours and of transformers with the same random weights, a small ViLBERT, and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families.bert.bert_peers import IGNORED, difference, packed_texts, padded, random_texts, randomize
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig
from flava_ds.data.plan import Draft
from flava_ds.data.regions import PackedRegions
from flava_ds.families.two_streams.config import (
    LxmertConfig,
    LxmertRegionsConfig,
    LxmertTextConfig,
    VilbertConfig,
    VilbertRegionsConfig,
)
from flava_ds.families.two_streams.hf import LAYOUTS
from flava_ds.families.two_streams.task import TwoStreamTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.detected_regions import DetectedRegionsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.region_masks import RegionMask

__all__ = [
    "difference",
    "inputs_of",
    "lxmert",
    "make_batch",
    "our_model",
    "randomize",
    "their_lxmert",
    "vilbert",
]

FEATURES, CLASSES = 6, 5
WORDS = {"vocab_size": 200, "max_position_embeddings": 32}
SHAPE = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
REGIONS = {"feature_size": FEATURES, "num_classes": CLASSES}
OBJECTIVES = {
    "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True, whole_word=False),
    "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
}


def lxmert(**changed) -> Config:
    """An LXMERT of 2 layers of words, 1 of regions, 2 of both, and its three heads."""
    model = LxmertConfig(
        text=LxmertTextConfig(num_hidden_layers=2, **WORDS, **SHAPE),
        image=LxmertRegionsConfig(num_hidden_layers=1, **REGIONS),
        cross_layers=2,
    )
    objectives = OBJECTIVES | {"detected_regions": DetectedRegionsConfig(hidden_share=0.9)}
    return Config(name="tiny", model=model, **({"objectives": objectives} | changed))


def vilbert(**changed) -> Config:
    """A ViLBERT whose streams have other widths: 3 layers of words, 2 of regions, 2 co-attention layers."""
    model = VilbertConfig(
        text=BertTextConfig(num_hidden_layers=3, **WORDS, **SHAPE),
        image=VilbertRegionsConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, **REGIONS
        ),
        co_attention_layers=2,
        co_attention_heads=3,
        co_attention_size=12,
    )
    objectives = OBJECTIVES | {"mrc": MaskedRegionClassesConfig(hidden_share=0.9)}
    return Config(name="tiny", model=model, **({"objectives": objectives} | changed))


def make_batch(lengths=(5, 12, 2, 9), regions=(4, 1, 6, 3), seed: int = 0) -> Batch:
    """A batch as the collator makes it, one of whose images has no region but itself."""
    draw = torch.Generator().manual_seed(seed)
    texts = random_texts(lengths, draw)
    count = sum(regions)
    features = torch.randn(count, FEATURES, generator=draw)
    corners = torch.rand(count, 2, 2, generator=draw).sort(1).values
    classes = (2 * torch.randn(count, CLASSES, generator=draw)).softmax(-1) * 0.9
    packed = PackedRegions(
        features=features.numpy(), boxes=corners.flatten(1).numpy(), classes=None, lengths=np.array(regions)
    )
    draft = Draft(
        seeds=np.arange(len(lengths), dtype=np.uint64), matched=np.ones(len(lengths)), regions=packed
    )
    masks = {name: torch.from_numpy(own) for name, own in RegionMask(0.5, 0.9)(draft).items()}
    tensors = {
        **packed_texts(texts),
        "itm_labels": torch.tensor([row % 2 for row in range(len(lengths))]),
        "region_features": features,
        "region_boxes": corners.flatten(1),
        "region_classes": classes,
        "region_cu_seqlens": torch.tensor([0, *regions]).cumsum(0).int(),
        **masks,
    }
    numbers = {"max_seqlen": max(lengths), "region_max_seqlen": max(regions)}
    return Batch(kind="pair", source="random", size=len(lengths), tensors=tensors, numbers=numbers)


def padded_regions(batch: Batch, packed: Tensor) -> Tensor:
    """Pads what each region has on the right: [O ...] -> [b o ...]."""
    parts = packed.split(batch["region_cu_seqlens"].diff().tolist())
    return nn.utils.rnn.pad_sequence(parts, batch_first=True)


def inputs_of(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Their inputs for a batch."""
    features = batch["region_features"].index_fill(0, batch["region_hidden_rows"], 0).to(dtype)
    return {
        "input_ids": padded(batch, batch["input_ids_masked"], 0),
        "attention_mask": padded(batch, torch.ones_like(batch["input_ids"]), 0),
        "visual_feats": padded_regions(batch, features),
        "visual_pos": padded_regions(batch, batch["region_boxes"].to(dtype)),
        "visual_attention_mask": padded_regions(batch, torch.ones(len(features))),
    }


def labels_of(batch: Batch, dtype: torch.dtype) -> dict[str, object]:
    """Their labels: padded regions have no confidence, and only masked ones a share in the features' loss."""
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[batch["mlm_rows"]] = batch["mlm_labels"]
    sure, best = batch["region_classes"].max(-1)
    masked = torch.zeros(len(sure)).index_fill(0, batch["region_masked_rows"], 1)
    features = batch["region_features"].to(dtype)
    return {
        "labels": padded(batch, labels, IGNORED),
        "matched_label": batch["itm_labels"],
        "obj_labels": {
            "obj": (padded_regions(batch, best), padded_regions(batch, sure.to(dtype))),
            "feat": (padded_regions(batch, features), padded_regions(batch, masked.to(dtype))),
        },
    }


def their_lxmert(config: Config, kind: str = "LxmertForPreTraining") -> nn.Module:
    """transformers' model of the same shape, spelled out by hand."""
    transformers = pytest.importorskip("transformers")
    model = config.model
    theirs = transformers.LxmertConfig(
        l_layers=model.text.num_hidden_layers,
        r_layers=model.image.num_hidden_layers,
        x_layers=model.cross_layers,
        visual_feat_dim=model.image.feature_size,
        num_object_labels=model.image.num_classes,
        task_qa=False,
        visual_attr_loss=False,
        visual_loss_normalizer=1 / 0.15,
        vocab_size=model.text.vocab_size,
        max_position_embeddings=model.text.max_position_embeddings,
        hidden_size=model.text.hidden_size,
        num_attention_heads=model.text.num_attention_heads,
        intermediate_size=model.text.intermediate_size,
    )
    return randomize(getattr(transformers, kind)(theirs)).eval()


def own_tensors(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the second name of the tied decoder."""
    return {name: value for name, value in values.items() if name != "cls.predictions.decoder.weight"}


def our_model(config: Config, theirs: nn.Module) -> TwoStreamTask:
    """Builds our model with their weights."""
    task = build_task(config).to(next(theirs.parameters()).dtype)
    weights = to_ours(
        own_tensors(dict(theirs.state_dict())), LAYOUTS.entries(config.model, heads=True), "theirs"
    )
    task.load_state_dict(weights)
    return task
