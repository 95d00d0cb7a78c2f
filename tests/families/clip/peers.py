"""Small CLIPs of ours, transformers and open_clip with the same random weights, and batches for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.data.plan import Draft
from flava_ds.families.clip.config import ClipConfig, ImageTowerConfig, TextTowerConfig
from flava_ds.families.clip.hf import entries
from flava_ds.families.clip.plans import PresentRows
from flava_ds.families.clip.task import ClipTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig

START, END = 198, 199
"""Of the tiny vocabulary: the last token of a text has the largest id, as in CLIP's."""


def tiny_config(activation: str = "quick_gelu", **changed) -> Config:
    """A CLIP whose towers differ in width and depth; 3 x 3 patches, 200 entries, heads of 8."""
    image = ImageTowerConfig(
        image_size=12,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
    )
    text = TextTowerConfig(
        vocab_size=200,
        max_position_embeddings=32,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=28,
    )
    model = ClipConfig(image=image, text=text, projection_dim=12, activation=activation)
    return Config(
        name="tiny",
        model=model,
        **({"objectives": {"global_contrastive": GlobalContrastiveConfig()}} | changed),
    )


def make_batch(
    config: Config,
    lengths: tuple[int, ...] = (5, 12, 2, 9),
    seed: int = 0,
    ends: tuple[int, int] = (START, END),
) -> Batch:
    """A batch as the collator makes it, every sample matched."""
    draw = torch.Generator().manual_seed(seed)
    size, edge = len(lengths), config.model.image.image_size
    texts = [
        [ends[0], *torch.randint(0, min(ends), (n - 2,), generator=draw).tolist(), ends[1]] for n in lengths
    ]
    tensors = {
        "pixel_values": torch.randint(0, 256, (size, 3, edge, edge), generator=draw, dtype=torch.uint8),
        "input_ids": torch.tensor([token for text in texts for token in text]),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "matched_rows": torch.arange(size),
    }
    return Batch(
        kind="pair", source="random", size=size, tensors=tensors, numbers={"max_seqlen": max(lengths)}
    )


def without_patches(batch: Batch, config: Config, share: float) -> Batch:
    """The same batch, in which training leaves out a share of each image's patches."""
    shape = dataclasses.replace(config.model.image, patch_dropout=share)
    draft = Draft(seeds=np.arange(batch.size, dtype=np.uint64), matched=np.ones(batch.size, dtype=bool))
    rows = PresentRows(shape.num_patches, shape.present_patches)(draft)["present_rows"]
    return batch.having(present_rows=torch.from_numpy(rows))


def normalized(pixel_values: Tensor, config: Config) -> Tensor:
    """Normalises uint8 pixels in fp64 with the plain formula: [b c H W]."""
    image = config.model.image
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (image.image_mean, image.image_std)
    )
    return (pixel_values.double() / 255 - mean) / std


def padded_ids(batch: Batch, fill: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Pads packed texts on the right: ids [b t], and the attention mask."""
    texts = batch["input_ids"].split(batch["cu_seqlens"].diff().tolist())
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=fill)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    more = 0 if length is None else length - ids.shape[1]
    return F.pad(ids, (0, more), value=fill), F.pad(mask, (0, more))


def randomize(model: nn.Module, std: float, seed: int = 0) -> nn.Module:
    """Draws every parameter, biases and gains too; a middle scale keeps the softmax away from uniform and
    one-hot.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std, generator=draw)
            if any(part in name for part in ("norm", "layrnorm", "ln_")) and name.endswith("weight"):
                parameter.add_(1.0)
        model.logit_scale.fill_(1.5)
    return model


def our_model(config: Config, theirs: nn.Module, *, open_clip: bool = False) -> ClipTask:
    """Builds our model with their weights."""
    task = build_task(config).to(next(theirs.parameters()).dtype)
    task.load_state_dict(
        to_ours(dict(theirs.state_dict()), entries(config.model, open_clip=open_clip), "theirs")
    )
    return task


def our_gradients(task: ClipTask) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in task.named_parameters()}


def their_gradients(theirs: nn.Module, config: Config, *, open_clip: bool = False) -> dict[str, Tensor]:
    """Returns their gradients by our names."""
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    return to_ours(gradients, entries(config.model, open_clip=open_clip), "their gradients")
