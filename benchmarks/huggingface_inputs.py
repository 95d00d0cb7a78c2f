"""Batches of this package as the inputs of transformers' classes, padded where theirs are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence


def padded(packed: Any, batch: Any, fill: int, length: int | None = None, bounds: str = "cu_seqlens") -> Any:
    """Pads packed rows on the right, to `length` or the longest: [T ...] -> [b t ...]."""
    rows = pad_sequence(
        packed.split(batch[bounds].diff().tolist()), batch_first=True, padding_value=float(fill)
    )
    return rows if length is None else F.pad(rows, (0, length - rows.shape[1]), value=fill)


def of_texts(batch: Any, ids: str = "input_ids_masked") -> dict[str, Any]:
    """Returns ids, mask and labels of masked words."""
    found = {
        "input_ids": padded(batch[ids], batch, 0),
        "attention_mask": padded(torch.ones_like(batch["input_ids"]), batch, 0),
    }
    if "mlm_rows" in batch and ids == "input_ids_masked":
        labels = torch.full_like(batch["input_ids"], -100)
        labels[batch["mlm_rows"]] = batch["mlm_labels"]
        found["labels"] = padded(labels, batch, -100)
    return found


def pixels(batch: Any, config: Any) -> Any:
    """Returns normalised pixels: [b c H W] fp32."""
    from flava_ds.hf.parity import normalized

    return normalized(batch["pixel_values"], config).float()


def asked(batch: Any) -> Any:
    """Returns the labels of second segments, with -100 where there is none: [b]."""
    labels = torch.full((batch.size,), -100)
    labels[batch["nsp_samples"]] = batch["nsp_labels"]
    return labels


def of_flava(batch: Any, config: Any, length: int | None) -> dict[str, Any]:
    """Returns FlavaForPreTraining's inputs."""
    from flava_ds.hf.parity import huggingface_inputs

    found = huggingface_inputs(batch, config)
    fill = {"mlm_labels": -100, "input_ids": 0, "input_ids_masked": 0, "attention_mask": 0}
    for name in fill.keys() & found.keys():
        if length is not None:
            found[name] = F.pad(found[name], (0, length - found[name].shape[1]), value=fill[name])
    if batch.kind == "text":
        del found["input_ids"]
    return found


def of_bert(batch: Any, config: Any, length: int | None) -> dict[str, Any]:
    """Returns BertForPreTraining's inputs."""
    types = padded(batch["token_types"], batch, 0)
    return of_texts(batch) | {"token_type_ids": types, "next_sentence_label": asked(batch)}


def of_visualbert(batch: Any, config: Any, length: int | None) -> dict[str, Any]:
    """Returns VisualBertForPreTraining's inputs; labels cover words and regions."""
    found = of_texts(batch)
    regions = padded(batch["region_features"].float(), batch, 0, bounds="region_cu_seqlens")
    seen = torch.ones(batch["region_features"].shape[0], dtype=torch.long)
    return found | {
        "labels": F.pad(found["labels"], (0, regions.shape[1]), value=-100),
        "token_type_ids": padded(batch["token_types"], batch, 0),
        "visual_embeds": regions,
        "visual_attention_mask": padded(seen, batch, 0, bounds="region_cu_seqlens"),
        "sentence_image_labels": asked(batch),
    }


def of_lxmert(batch: Any, config: Any, length: int | None) -> dict[str, Any]:
    """Returns LxmertForPreTraining's inputs; regions that are masked are hidden, all have a class."""

    def regions(packed: Any) -> Any:
        return padded(packed, batch, 0, bounds="region_cu_seqlens")

    features = batch["region_features"].float()
    sure, best = batch["region_classes"].float().max(-1)
    masked = torch.zeros(len(sure)).index_fill(0, batch["region_masked_rows"], 1)
    hidden = features.index_fill(0, batch["region_hidden_rows"], 0)
    return of_texts(batch) | {
        "visual_feats": regions(hidden),
        "visual_pos": regions(batch["region_boxes"]),
        "visual_attention_mask": regions(torch.ones(len(sure))),
        "matched_label": batch["itm_labels"],
        "obj_labels": {
            "obj": (regions(best), regions(sure)),
            "feat": (regions(features), regions(masked)),
        },
    }


def of_vilt(batch: Any, config: Any, length: int | None) -> dict[str, Any]:
    """Returns ViltForMaskedLM's inputs."""
    return of_texts(batch) | {"pixel_values": pixels(batch, config)}


def of_pairs(batch: Any, config: Any, length: int | None) -> dict[str, Any]:
    """Returns the inputs of CLIPModel and AlignModel."""
    found = of_texts(batch, "input_ids") | {"pixel_values": pixels(batch, config)}
    return found | {"return_loss": True}


INPUTS = {
    "flava": of_flava,
    "bert": of_bert,
    "visualbert": of_visualbert,
    "vilt": of_vilt,
    "lxmert": of_lxmert,
}
"""By the family's tag; the others' classes take those of `of_pairs`."""
