"""Small configurations and hand-made batches that several test packages share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.config import CodebookConfig, Config
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig

CLS, SEP, MASK = 101, 102, 103


def tiny_objectives() -> dict[str, ObjectiveConfig]:
    """The six objectives, with blocks of patches that fit the tiny pictures."""
    masking = {"num_masked_patches": 4, "min_patches_per_block": 1}
    return flava_objectives(
        mim=MaskedImageConfig(**masking), mmm_image=MultimodalMaskedImageConfig(**masking)
    )


def tiny_config(**overrides) -> Config:
    """A FLAVA whose three encoders have different depths; 3 x 3 patches, vocabulary 200, 50 codes."""
    shape = dict(hidden_size=24, num_attention_heads=3, intermediate_size=40)
    model = FlavaConfig(
        image=VisionEncoderConfig(image_size=12, patch_size=4, num_hidden_layers=2, **shape),
        text=FlavaTextConfig(vocab_size=200, max_position_embeddings=32, num_hidden_layers=3, **shape),
        multimodal=MultimodalEncoderConfig(num_hidden_layers=1, **shape),
        projection_dim=16,
    )
    codebook = CodebookConfig(
        hidden_size=8, num_blocks_per_group=1, vocab_size=50, image_size=24, decoder_init_size=8
    )
    return Config(
        name="tiny", model=model, codebook=codebook, **({"objectives": tiny_objectives()} | overrides)
    )


def make_batch(
    kind: Kind,
    config: Config,
    size: int = 4,
    seed: int = 0,
    mismatched: tuple[int, ...] = (1,),
    lengths: tuple[int, ...] | None = None,
) -> Batch:
    """A random batch with everything its kind has, as the collator would make it."""
    draw = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, int] = {}
    patches = config.model.image.num_patches
    matched = [i for i in range(size) if kind != Kind.PAIR or i not in mismatched]
    if kind in (Kind.IMAGE, Kind.PAIR):
        edge = config.model.image.image_size
        tensors["pixel_values"] = torch.from_numpy(
            draw.integers(0, 256, (size, 3, edge, edge), dtype=np.uint8)
        )
        mask = draw.random((size, patches)) < 0.4
        tensors["bool_masked_pos"] = torch.from_numpy(mask)
        tensors["image_codes"] = torch.from_numpy(
            draw.integers(0, config.codebook.vocab_size, (size, patches))
        )
        tensors["mim_rows"] = torch.from_numpy(
            np.flatnonzero(mask & np.isin(np.arange(size), matched)[:, None])
        )
    if kind in (Kind.TEXT, Kind.PAIR):
        lengths = lengths or tuple(int(n) for n in draw.integers(3, 11, size))
        numbers["max_seqlen"] = max(lengths)
        texts = [np.r_[CLS, draw.integers(104, config.model.text.vocab_size, n - 2), SEP] for n in lengths]
        ids, owner = np.concatenate(texts), np.repeat(np.arange(size), lengths)
        chosen = (draw.random(len(ids)) < 0.3) & (ids > MASK)
        rows = np.flatnonzero(chosen & np.isin(owner, matched))
        tensors |= {
            "input_ids": torch.from_numpy(ids),
            "input_ids_masked": torch.from_numpy(np.where(chosen, MASK, ids)),
            "cu_seqlens": torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
            "mlm_rows": torch.from_numpy(rows),
            "mlm_labels": torch.from_numpy(ids[rows]),
        }
    if kind == Kind.PAIR:
        tensors["itm_labels"] = torch.tensor([int(i in matched) for i in range(size)])
        tensors["matched_rows"] = torch.tensor(matched, dtype=torch.long)
    keys = tuple(f"{kind}{i}" for i in range(size))
    return Batch(kind=kind, source=kind.value, size=size, keys=keys, tensors=tensors, numbers=numbers)


CLEAN = ("pixel_values", "input_ids", "cu_seqlens", "matched_rows")


def masked_share_of(batch: Batch, rows: tuple[int, ...], share: Batch) -> Batch:
    """The pair batch whose samples `rows` alone are masked, as `share`, a batch of these samples, is."""
    clean = {name: batch[name] for name in CLEAN}
    masked = {name: tensor for name, tensor in share.tensors.items() if name not in CLEAN}
    ends = {"masked_samples": torch.tensor(rows), "masked_cu_seqlens": share["cu_seqlens"]}
    numbers = {**batch.numbers, "masked_max_seqlen": share.numbers["max_seqlen"]}
    return replace(batch, tensors={**clean, **masked, **ends}, numbers=numbers)


def samples_of(batch: Batch, rows: tuple[int, ...]) -> Batch:
    """Some samples of a pair batch as a batch of their own."""
    ends, patches = batch["cu_seqlens"].tolist(), batch["bool_masked_pos"].shape[1]
    tokens = torch.cat([torch.arange(ends[row], ends[row + 1]) for row in rows])
    lengths = [ends[row + 1] - ends[row] for row in rows]
    places = {int(token): place for place, token in enumerate(tokens)}
    predicted = [
        (row, label)
        for row, label in zip(batch["mlm_rows"].tolist(), batch["mlm_labels"].tolist(), strict=True)
        if row in places
    ]
    patch_rows = [
        place * patches + patch % patches
        for place, row in enumerate(rows)
        for patch in batch["mim_rows"].tolist()
        if patch // patches == row
    ]
    index = torch.tensor(rows)
    tensors = {
        name: batch[name][index] for name in ("pixel_values", "bool_masked_pos", "image_codes", "itm_labels")
    }
    tensors |= {name: batch[name][tokens] for name in ("input_ids", "input_ids_masked")}
    tensors |= {
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "mim_rows": torch.tensor(patch_rows, dtype=torch.long),
        "mlm_rows": torch.tensor([places[row] for row, _ in predicted], dtype=torch.long),
        "mlm_labels": torch.tensor([label for _, label in predicted], dtype=torch.long),
        "matched_rows": torch.tensor(
            [p for p, row in enumerate(rows) if row in batch["matched_rows"].tolist()]
        ),
    }
    return replace(batch, size=len(rows), tensors=tensors, numbers={"max_seqlen": max(lengths)})


def denominators(module, batch: Batch) -> dict[str, torch.Tensor]:
    """What the trainer would pass on one rank with one micro-step."""
    return {name: torch.tensor(float(max(count, 1))) for name, count in module.counts(batch).items()}
