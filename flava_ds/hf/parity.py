"""Compares this model with transformers' FlavaForPreTraining on the same micro-batch.

The inputs work around faults of transformers. Its row filter for mismatched pairs exists only while the ITM
weight is positive, so labels of mismatched rows are ignored here. It overwrites mim_labels, so every call
gets new tensors. itm_labels must be [b], whatever its docstring says. Without a matched pair it treats
mismatched ones as positives, so such batches are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flava_ds.batch import IGNORE_INDEX, Batch
from flava_ds.config import Config
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.families.flava.task import FlavaTask
from flava_ds.families.flava.views import Kind, View
from flava_ds.objectives.global_contrastive import clamped

if TYPE_CHECKING:
    from transformers import FlavaForPreTraining
    from transformers.models.flava.modeling_flava import FlavaForPreTrainingOutput

VIEWS: Mapping[str, tuple[View, ...]] = {
    Kind.IMAGE: (View.IMAGE, View.IMAGE_MASKED),
    Kind.TEXT: (View.TEXT, View.TEXT_MASKED),
    Kind.PAIR: tuple(View),
}
_CLS, _SEP, _MASK = 101, 102, 103


def random_batch(kind: Kind, config: Config, *, size: int = 3, mismatched: tuple[int, ...] = (1,)) -> Batch:
    """Draws a micro-batch with captions of different lengths; needs no data, so it works for any model."""
    draw = torch.Generator().manual_seed(0)
    model, patches = FlavaConfig.of(config), config.model.num_patches
    matched = torch.tensor([i for i in range(size) if kind != Kind.PAIR or i not in mismatched])
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    if kind in (Kind.IMAGE, Kind.PAIR):
        shape = (size, model.image.num_channels, model.image.image_size, model.image.image_size)
        mask = torch.rand(size, patches, generator=draw) < 0.4
        mask[:, 0] = True
        predicted = torch.zeros_like(mask).index_copy(0, matched, mask[matched])
        tensors |= {
            "pixel_values": torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),
            "bool_masked_pos": mask,
            "image_codes": torch.randint(0, config.codebook.vocab_size, (size, patches), generator=draw),
            "mim_rows": predicted.flatten().nonzero()[:, 0],
        }
    if kind in (Kind.TEXT, Kind.PAIR):
        lengths = [min(4 + 3 * i, model.text.max_position_embeddings) for i in range(size)]
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        vocab_size = model.text.vocab_size
        ids = torch.randint(min(104, vocab_size - 1), vocab_size, (sum(lengths),), generator=draw)
        ids[cu_seqlens[:-1]], ids[cu_seqlens[1:] - 1] = min(_CLS, vocab_size - 1), min(_SEP, vocab_size - 1)
        chosen = torch.zeros(len(ids), dtype=torch.bool)
        chosen[cu_seqlens[:-1] + 1] = True
        chosen |= torch.rand(len(ids), generator=draw) < 0.2
        owner = torch.repeat_interleave(torch.arange(size), torch.tensor(lengths))
        rows = (chosen & torch.isin(owner, matched)).nonzero()[:, 0]
        numbers["max_seqlen"] = max(lengths)
        tensors |= {
            "input_ids": ids,
            "input_ids_masked": torch.where(chosen, min(_MASK, vocab_size - 1), ids),
            "cu_seqlens": cu_seqlens.int(),
            "mlm_rows": rows,
            "mlm_labels": ids[rows],
        }
    if kind == Kind.PAIR:
        tensors |= {"itm_labels": torch.isin(torch.arange(size), matched).long(), "matched_rows": matched}
    return Batch(kind=kind, source="random", size=size, tensors=tensors, numbers=numbers)


def huggingface_inputs(batch: Batch, config: Config, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Converts a packed batch to FlavaForPreTraining's padded arguments; every tensor is new.

    Shapes:
        pixel_values                          [b c H W]  normalised
        bool_masked_pos, mim_labels           [b n]      labels IGNORE_INDEX where nothing is predicted
        input_ids, input_ids_masked           [b t]      padded with pad_token_id; attention_mask is 0 there
        mlm_labels                            [b t]
        itm_labels                            [b]
    """
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in batch:
        labels = torch.full_like(batch["image_codes"], IGNORE_INDEX).flatten()
        labels[batch["mim_rows"]] = batch["image_codes"].flatten()[batch["mim_rows"]]
        inputs |= {
            "pixel_values": normalized(batch["pixel_values"], config).to(dtype),
            "bool_masked_pos": batch["bool_masked_pos"].clone(),
            "mim_labels": labels.view_as(batch["image_codes"]),
        }
    if "input_ids" in batch:
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        labels[batch["mlm_rows"]] = batch["mlm_labels"]
        pad = FlavaConfig.of(config).text.pad_token_id
        inputs |= {
            "input_ids": padded(batch["input_ids"], batch, pad),
            "input_ids_masked": padded(batch["input_ids_masked"], batch, pad),
            "attention_mask": padded(torch.ones_like(batch["input_ids"]), batch, 0),
            "mlm_labels": padded(labels, batch, IGNORE_INDEX),
        }
    if batch.kind == Kind.PAIR:
        inputs["itm_labels"] = batch["itm_labels"].clone()
    return inputs


def normalized(pixel_values: Tensor, config: Config) -> Tensor:
    """Normalises uint8 pixels in fp64 with the plain formula; floats are taken as normalised: [b c H W]."""
    if pixel_values.dtype != torch.uint8:
        return pixel_values
    image = FlavaConfig.of(config).image
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (image.image_mean, image.image_std)
    )
    return (pixel_values.double() / 255 - mean) / std


def padded(packed: Tensor, batch: Batch, fill: int) -> Tensor:
    """Pads packed tokens on the right: [T] -> [b t]."""
    return torch.nn.utils.rnn.pad_sequence(
        packed.split(batch["cu_seqlens"].diff().tolist()), batch_first=True, padding_value=fill
    )


def our_results(module: FlavaTask, batch: Batch) -> tuple[dict[View, Tensor], dict[str, Tensor]]:
    """Computes all views of the batch's kind after the final LayerNorm, and the active objectives' logits.

    Shapes:
        states  view -> [T d]   packed
        logits  name -> [k v]   under transformers' names; contrastive [matched b], itm [b 2]
    """
    encoded = module.model.encode(batch, VIEWS[batch.kind])
    active: Mapping[str, Any] = module.active(batch.kind)  # their heads differ in type
    logits: dict[str, Tensor] = {}
    for name, objective in active.items():
        if name == "global_contrastive":
            image, text = (
                module.model.image_embeddings(encoded[View.IMAGE].first()),
                module.model.text_embeddings(encoded[View.TEXT].first()),
            )
            scores = (
                clamped(module.model.logit_scale, objective.config.logit_scale_max).exp() * image @ text.T
            )
            logits |= {
                "contrastive_logits_per_image": scores[batch["matched_rows"]],
                "contrastive_logits_per_text": scores.T[batch["matched_rows"]],
            }
        elif name == "itm":
            logits["itm_logits"] = objective.head(encoded[View.MULTIMODAL_MASKED].first())
        else:
            rows = objective.reads(module.model, batch)[objective.view]
            logits[f"{name}_logits"] = objective.head.logits(encoded[objective.view].rows(rows))
    return {view: part.last_hidden_state() for view, part in encoded.items()}, logits


def run_theirs(model: FlavaForPreTraining, batch: Batch, config: Config) -> FlavaForPreTrainingOutput:
    """Runs transformers' model, including the clean text and fused passes that no loss needs."""
    return model(**huggingface_inputs(batch, config, model.dtype), skip_unmasked_multimodal_encoder=False)


def their_results(
    output: FlavaForPreTrainingOutput, batch: Batch
) -> tuple[dict[View, Tensor], dict[str, Tensor]]:
    """Reads transformers' hidden states, packed, and logits; see `our_results`.

    With an ITM weight of 0 it keeps mismatched contrastive rows, which are removed here. Its
    multimodal_masked_embeddings lack mismatched rows, so the encoder's output is read instead.
    """
    logits = {
        name: output[name]
        for name in output
        if name.endswith("_logits") or name.startswith("contrastive_logits")
    }
    for name in logits.keys() & {"contrastive_logits_per_image", "contrastive_logits_per_text"}:
        if logits[name].shape[0] == batch.size:
            logits[name] = logits[name][batch["matched_rows"]]
    states: dict[View, Tensor] = {}
    for view in VIEWS[batch.kind]:
        hidden = output[f"{view}_output"].last_hidden_state
        if view in (View.IMAGE, View.IMAGE_MASKED):
            states[view] = rearrange(hidden, "b s d -> (b s) d")
        else:
            real = padded(torch.ones_like(batch["input_ids"]), batch, 0).bool()
            states[view] = hidden[F.pad(real, (hidden.shape[1] - real.shape[1], 0), value=True)]
    return states, logits


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns max |ours - theirs| / max |theirs|; infinite for a NaN or another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.detach().double(), theirs.detach().double()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    return difference if difference == difference else float("inf")
