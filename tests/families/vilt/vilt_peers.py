"""Small ViLTs of ours and of transformers with the same random weights, and batches for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families.bert.bert_peers import IGNORED, difference, packed_texts, padded, random_texts, randomize
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.plan import Draft
from flava_ds.families.vilt.config import StreamConfig, ViltConfig, WordsConfig
from flava_ds.families.vilt.hf import entries, heads_of
from flava_ds.families.vilt.task import ViltTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig, WordRows

__all__ = ["difference", "inputs_of", "make_batch", "our_model", "randomize", "their_vilt", "tiny_config"]

VIEW = "multimodal_masked"


def tiny_config(tied: bool = True, **changed) -> Config:
    """A ViLT of three layers, 3 x 3 patches, 200 entries, heads of 8."""
    image = StreamConfig(
        image_size=12,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_patches=20,
    )
    objectives = {
        "mmm_text": MultimodalMaskedTextConfig(tied_decoder=tied),
        "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
        "wpa": WordPatchAlignmentConfig(weight=0.1),
    }
    model = ViltConfig(image=image, text=WordsConfig(vocab_size=200, max_position_embeddings=32))
    return Config(name="tiny", model=model, **({"objectives": objectives} | changed))


def make_batch(lengths=(5, 12, 2, 9), seed: int = 0, size: tuple[int, int] = (12, 12)) -> Batch:
    """A batch as the collator makes it; every second sample is matched with another text."""
    draw = torch.Generator().manual_seed(seed)
    texts = random_texts(lengths, draw)
    others = [texts[row - 1] if row % 2 else text for row, text in enumerate(texts)]
    matching = torch.tensor([token for text in others for token in text])
    counts = np.array([len(text) for text in others])
    matched = np.array([row % 2 == 0 for row in range(len(texts))])
    draft = Draft(seeds=counts, matched=matched, matching=(matching.numpy(), counts))
    tensors = {
        "pixel_values": torch.randint(0, 256, (len(texts), 3, *size), generator=draw, dtype=torch.uint8),
        **packed_texts(texts),
        "matching_input_ids": matching,
        "matching_cu_seqlens": torch.tensor([0, *counts.tolist()]).cumsum(0).int(),
        "itm_labels": torch.from_numpy(matched).long(),
        "wpa_rows": torch.from_numpy(WordRows()(draft)["wpa_rows"]),
    }
    numbers = {"max_seqlen": max(lengths), "matching_max_seqlen": int(counts.max())}
    return Batch(kind="pair", source="random", size=len(texts), tensors=tensors, numbers=numbers)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Their inputs for the masked texts of a batch; pixels normalised in fp64 with the plain formula."""
    pixels = batch["pixel_values"].double() / 127.5 - 1
    return {
        "input_ids": padded(batch, batch["input_ids_masked"], 0),
        "attention_mask": padded(batch, torch.ones_like(batch["input_ids"]), 0),
        "pixel_values": pixels,
        "pixel_mask": torch.ones_like(pixels[:, 0]).long(),
    }


def labels_of(batch: Batch) -> Tensor:
    """Their labels of masked tokens: [b t]."""
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[batch["mlm_rows"]] = batch["mlm_labels"]
    return padded(batch, labels, IGNORED)


def their_vilt(config: Config, kind: str = "ViltForMaskedLM") -> nn.Module:
    """transformers' model of the same shape, spelled out by hand."""
    transformers = pytest.importorskip("transformers")
    image, text = config.model.image, config.model.text
    theirs = transformers.ViltConfig(
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        hidden_size=image.hidden_size,
        num_hidden_layers=image.num_hidden_layers,
        num_attention_heads=image.num_attention_heads,
        intermediate_size=image.intermediate_size,
        layer_norm_eps=image.layer_norm_eps,
        image_size=image.image_size,
        patch_size=image.patch_size,
        max_image_length=-1,
    )
    return randomize(getattr(transformers, kind)(theirs)).eval()


def own_tensors(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the second name of the tied decoder."""
    return {name: value for name, value in values.items() if name != "mlm_score.decoder.weight"}


def our_model(config: Config, theirs: nn.Module) -> ViltTask:
    """Builds our model with their weights; heads that they lack stay as drawn."""
    task = build_task(config).to(next(theirs.parameters()).dtype)
    weights = to_ours(own_tensors(dict(theirs.state_dict())), entries(config.model, heads_of(True)), "theirs")
    assert not task.load_state_dict(weights, strict=False).unexpected_keys
    return task
