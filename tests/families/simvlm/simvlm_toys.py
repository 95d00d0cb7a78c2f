"""A small SimVLM and batches for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from families.bert.bert_peers import random_texts

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.plan import Draft
from flava_ds.families.simvlm.config import ConvStemConfig, SidesConfig, SimvlmConfig, StackConfig
from flava_ds.objectives.prefix_lm import PrefixLmConfig, PrefixSplit, TextPrefixLmConfig

OBJECTIVES = {"prefix_lm": PrefixLmConfig(), "text_prefix_lm": TextPrefixLmConfig()}


def tiny_model(**changed) -> SimvlmConfig:
    """Two layers a side of width 24, heads of 8, 2 x 2 patches of 8 pixels, 200 entries."""
    stack = StackConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
    model = SimvlmConfig(
        image=ConvStemConfig(image_size=16, width=4, blocks=(1, 1), norm_group=2),
        text=SidesConfig(vocab_size=200, max_position_embeddings=32),
        encoder=stack,
        decoder=stack,
    )
    return dataclasses.replace(model, **changed)


def tiny_config(**changed) -> Config:
    return Config(name="tiny", model=tiny_model(), **({"objectives": OBJECTIVES} | changed))


def make_batch(lengths=(5, 12, 2, 9), kind: str = "pair", seed: int = 0) -> Batch:
    """A batch as the collator makes it."""
    draw = torch.Generator().manual_seed(seed)
    texts = random_texts(lengths, draw)
    ids, counts = np.array([token for text in texts for token in text]), np.array(lengths)
    seeds = np.arange(len(texts), dtype=np.uint64)
    draft = Draft(seeds=seeds, matched=counts > 0, input_ids=ids, lengths=counts)
    tensors = {
        "input_ids": torch.from_numpy(ids),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        **{name: torch.from_numpy(own) for name, own in PrefixSplit()(draft).items()},
    }
    if kind == "pair":
        size = (len(texts), 3, 16, 16)
        tensors["pixel_values"] = torch.randint(0, 256, size, generator=draw, dtype=torch.uint8)
    numbers = {"max_seqlen": max(lengths)}
    return Batch(kind=kind, source="random", size=len(texts), tensors=tensors, numbers=numbers)
