"""Masked prediction on held-out data: accuracy and loss of MLM, MIM and both halves of MMM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.data.order import hash64
from flava_ds.evaluation.base import CHANCE, Evaluator, Unavailable
from flava_ds.evaluation.encoding import BATCH_ROWS, FrozenModel, text_batch
from flava_ds.evaluation.inputs import SEED, Inputs
from flava_ds.evaluation.samples import Samples
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.masked_image import mask_patches
from flava_ds.objectives.masked_text import mask_tokens

MOST_SAMPLES = 1024
"""Of each set; some ten thousand masked tokens or patches, a standard error of half a per cent."""


class Masked(Evaluator):
    """Predicts masked tokens of held-out glosses, masked patches of images in the unseen style, and both on pairs of that style.

    Masks are drawn from fixed seeds with the run's own masking settings; images are not augmented.
    """

    name = "masked"

    def run(self, model: FrozenModel) -> dict[str, float]:
        """Returns accuracy beside that of always guessing the most frequent target, and the mean cross-entropy."""
        available = {
            Kind.TEXT: ({"mlm"}, lambda: self.inputs.texts),
            Kind.IMAGE: ({"mim"}, lambda: self.inputs.unseen_style),
            Kind.PAIR: ({"mmm_text", "mmm_image"}, lambda: self.inputs.unseen_style),
        }
        metrics = {}
        for kind, (wanted, samples) in available.items():
            names = [name for name in sorted(wanted) if name in model.module.objectives and (self.inputs.codebook or name in ("mlm", "mmm_text"))]
            if names:
                metrics |= self.predict(model, kind, names, samples())
        if not metrics:
            raise Unavailable(self.inputs.codebook_problem or "the run trains no masked objective")
        return metrics

    @torch.inference_mode()
    def predict(self, model: FrozenModel, kind: Kind, names: list[str], samples: Samples) -> dict[str, float]:
        """Runs the objectives themselves, as training does, over batches of one kind."""
        sums = {name: np.zeros(3) for name in names}
        targets: dict[str, Counter[int]] = {name: Counter() for name in names}
        for batch in masked_batches(self.inputs, kind, samples, MOST_SAMPLES):
            batch = batch.to(model.device)
            for name, loss in model.module.losses(batch, only=names).items():
                sums[name] += [float(loss.sum), float(loss.metrics["correct"]), loss.count]
                targets[name].update(labels_of(name, batch).tolist())
        metrics = {}
        for name, (loss, correct, count) in ((name, values.tolist()) for name, values in sums.items()):
            if not count:
                raise Unavailable(f"masking selected nothing to predict for {name}; check objectives.{name}")
            metrics[f"{self.name}/{name}/accuracy"] = correct / count
            metrics[f"{self.name}/{name}/accuracy{CHANCE}"] = targets[name].most_common(1)[0][1] / count
            metrics[f"{self.name}/{name}/loss_nats"] = loss / count
        return metrics


def labels_of(name: str, batch: Batch) -> Tensor:
    """Returns what an objective has to predict in a batch: [k]."""
    return batch["mlm_labels"] if name in ("mlm", "mmm_text") else batch["image_codes"].flatten()[batch["mim_rows"]]


def masked_batches(inputs: Inputs, kind: Kind, samples: Samples, most: int) -> Iterator[Batch]:
    """Yields batches of one kind with masks fixed by each sample's place in its set; pairs are all matched."""
    count = min(most, len(samples))
    name = {Kind.TEXT: "mlm", Kind.IMAGE: "mim", Kind.PAIR: "mmm_text"}[kind]
    if kind != Kind.IMAGE:
        ids = inputs.tokenizer.encode_batch(samples.captions[:count], inputs.max_tokens(kind.value))
    codes = inputs.codes(samples, count) if kind != Kind.TEXT and inputs.codebook is not None else None
    for start in range(0, count, BATCH_ROWS):
        rows = np.arange(start, min(start + BATCH_ROWS, count))
        seeds = hash64(SEED, rows)
        tensors, keys = {}, tuple(samples.keys[row] for row in rows)
        if kind != Kind.TEXT:
            tensors |= masked_image_fields(inputs, samples, rows, "mim" if kind == Kind.IMAGE else "mmm_image")
            if codes is not None:
                tensors["image_codes"] = codes[rows]
        if kind == Kind.IMAGE:
            yield Batch(kind=kind, source="evaluation", size=len(rows), keys=keys, tensors=tensors)
            continue
        chosen = [ids[row] for row in rows]
        lengths = np.array([len(text) for text in chosen])
        tokens = mask_tokens(seeds, np.concatenate(chosen), lengths, inputs.config.objectives[name], inputs.tokenizer)
        tensors |= {name: torch.from_numpy(value) for name, value in zip(("input_ids_masked", "mlm_rows", "mlm_labels"), vars(tokens).values(), strict=True)}
        batch = replace(text_batch(chosen), kind=kind, keys=keys).having(**tensors)
        every_row = torch.arange(len(rows))
        pair = {"itm_labels": torch.ones_like(every_row), "matched_rows": every_row}
        yield batch if kind == Kind.TEXT else batch.having(**pair)


def masked_image_fields(inputs: Inputs, samples: Samples, rows: np.ndarray, objective: str) -> dict[str, Tensor]:
    """Returns pixels and masks of the chosen pictures."""
    image = inputs.config.model.image
    mask = mask_patches(hash64(SEED, rows), image.grid_size, inputs.config.objectives[objective])
    return {
        "pixel_values": samples.pixels(image.image_size)[rows],
        "bool_masked_pos": torch.from_numpy(mask),
        "mim_rows": torch.from_numpy(np.flatnonzero(mask)),
    }
