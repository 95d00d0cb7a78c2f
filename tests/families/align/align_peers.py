"""Small ALIGNs of ours and of transformers with the same random weights, and batches for them."""

from __future__ import annotations

import pytest
import torch
from families.bert.bert_peers import padded, random_texts, randomize
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.align.config import AlignConfig, EfficientNetConfig
from flava_ds.families.align.hf import entries
from flava_ds.families.align.task import AlignTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig

OBJECTIVES = {"global_contrastive": GlobalContrastiveConfig(label_smoothing=0.1, logit_scale_max=10.0)}


def tiny_config(**changed) -> Config:
    """B0 at a quarter of the width and a block per stage but for one, a BERT of two layers, groups of 4."""
    text = BertTextConfig(
        vocab_size=200,
        max_position_embeddings=32,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
    )
    image = EfficientNetConfig(image_size=64, width=0.25, depth=0.5, drop_path=0.0, norm_group=4)
    return Config(
        name="tiny", model=AlignConfig(image=image, text=text), **({"objectives": OBJECTIVES} | changed)
    )


def make_batch(lengths=(5, 12, 2, 9), seed: int = 0) -> Batch:
    """A batch as the collator makes it."""
    draw = torch.Generator().manual_seed(seed)
    texts = random_texts(lengths, draw)
    noise = torch.rand(len(texts), 3, 64, 64, generator=draw)
    tensors = {
        "pixel_values": (noise * torch.linspace(50, 255, len(texts))[:, None, None, None]).to(torch.uint8),
        "input_ids": torch.tensor([token for text in texts for token in text]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "matched_rows": torch.arange(len(texts)),
    }
    numbers = {"max_seqlen": max(lengths)}
    return Batch(kind="pair", source="random", size=len(texts), tensors=tensors, numbers=numbers)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Their inputs; pixels normalised in fp64 with the plain formula."""
    return {
        "input_ids": padded(batch, batch["input_ids"], 0),
        "attention_mask": padded(batch, torch.ones_like(batch["input_ids"]), 0),
        "pixel_values": batch["pixel_values"].double() / 127.5 - 1,
    }


def their_align(config: Config) -> nn.Module:
    """transformers' model of the same shape, spelled out by hand."""
    transformers = pytest.importorskip("transformers")
    image, text = config.model.image, config.model.text
    text_config = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    vision_config = {
        "image_size": image.image_size,
        "width_coefficient": image.width,
        "depth_coefficient": image.depth,
        "drop_connect_rate": 0.0,
    }
    theirs = transformers.AlignConfig(
        text_config=text_config, vision_config=vision_config, projection_dim=config.model.projection_dim
    )
    model = randomize(transformers.AlignModel(theirs), std=0.1)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.temperature.fill_(0.5)
        for name, parameter in model.vision_model.named_parameters():  # as large as keeps the images apart
            if parameter.ndim == 4:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5, generator=draw)
            elif name.endswith("_bn.weight"):  # whose names randomize does not know
                parameter.add_(1.0)
        # moments of real activations, so that images are told apart after ten blocks
        pixels = torch.randn(16, 3, 64, 64, generator=draw)
        for _ in range(20):
            model.train().vision_model(pixels)
    return model


def own_tensors(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the pooler and the counters, which nothing reads."""
    return {name: own for name, own in values.items() if "pooler" not in name and "num_batches" not in name}


def our_model(config: Config, theirs: nn.Module) -> AlignTask:
    """Builds our model with their weights and moments."""
    task = build_task(config).to(next(theirs.parameters()).dtype)
    task.load_state_dict(to_ours(own_tensors(dict(theirs.state_dict())), entries(config.model), "theirs"))
    return task
