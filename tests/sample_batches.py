"""Small configurations and hand-made batches that several test packages share."""

from __future__ import annotations

import numpy as np
import torch

from flava_ds.batch import Batch, Kind
from flava_ds.config import CodebookConfig, Config, ImageEncoderConfig, ModelConfig, MultimodalEncoderConfig, TextEncoderConfig

CLS, SEP, MASK = 101, 102, 103


def tiny_config(**overrides) -> Config:
    """A FLAVA whose three encoders have different depths; 3 x 3 patches, vocabulary 200, 50 codes."""
    shape = dict(hidden_size=24, num_attention_heads=3, intermediate_size=40)
    model = ModelConfig(
        image=ImageEncoderConfig(image_size=12, patch_size=4, num_hidden_layers=2, **shape),
        text=TextEncoderConfig(vocab_size=200, max_position_embeddings=32, num_hidden_layers=3, **shape),
        multimodal=MultimodalEncoderConfig(num_hidden_layers=1, **shape),
        projection_dim=16,
    )
    codebook = CodebookConfig(hidden_size=8, num_blocks_per_group=1, vocab_size=50, image_size=24, decoder_init_size=8)
    return Config(name="tiny", model=model, codebook=codebook, **overrides)


def make_batch(kind: Kind, config: Config, size: int = 4, seed: int = 0, mismatched: tuple[int, ...] = (1,), lengths: tuple[int, ...] | None = None) -> Batch:
    """A random batch with everything its kind has, as the collator would make it."""
    draw = np.random.default_rng(seed)
    fields: dict = {"kind": kind, "source": kind.value, "size": size, "keys": tuple(f"{kind}{i}" for i in range(size))}
    patches = config.model.image.num_patches
    matched = [i for i in range(size) if kind is not Kind.PAIR or i not in mismatched]
    if kind in (Kind.IMAGE, Kind.PAIR):
        edge = config.model.image.image_size
        fields["pixel_values"] = torch.from_numpy(draw.integers(0, 256, (size, 3, edge, edge), dtype=np.uint8))
        mask = draw.random((size, patches)) < 0.4
        fields["bool_masked_pos"] = torch.from_numpy(mask)
        fields["image_codes"] = torch.from_numpy(draw.integers(0, config.codebook.vocab_size, (size, patches)))
        fields["mim_rows"] = torch.from_numpy(np.flatnonzero(mask & np.isin(np.arange(size), matched)[:, None]))
    if kind in (Kind.TEXT, Kind.PAIR):
        lengths = lengths or tuple(int(n) for n in draw.integers(3, 11, size))
        texts = [np.r_[CLS, draw.integers(104, config.model.text.vocab_size, n - 2), SEP] for n in lengths]
        ids, owner = np.concatenate(texts), np.repeat(np.arange(size), lengths)
        chosen = (draw.random(len(ids)) < 0.3) & (ids > MASK)
        rows = np.flatnonzero(chosen & np.isin(owner, matched))
        fields |= {
            "input_ids": torch.from_numpy(ids),
            "input_ids_masked": torch.from_numpy(np.where(chosen, MASK, ids)),
            "cu_seqlens": torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
            "max_seqlen": max(lengths),
            "mlm_rows": torch.from_numpy(rows),
            "mlm_labels": torch.from_numpy(ids[rows]),
        }
    if kind is Kind.PAIR:
        fields["itm_labels"] = torch.tensor([int(i in matched) for i in range(size)])
        fields["matched_rows"] = torch.tensor(matched, dtype=torch.long)
    return Batch(**fields)


def denominators(module, batch: Batch) -> dict[str, torch.Tensor]:
    """What the trainer would pass on one rank with one micro-step."""
    return {name: torch.tensor(float(max(count, 1))) for name, count in module.counts(batch).items()}
