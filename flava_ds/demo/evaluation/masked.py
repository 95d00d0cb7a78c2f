"""Masked prediction on held-out data: accuracy and loss of MLM, MIM and both halves of MMM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.data.order import hash64
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.demo.evaluation.base import CHANCE
from flava_ds.demo.evaluation.inputs import SEED, Inputs
from flava_ds.evaluation.frozen_model import BATCH_ROWS, FrozenModel, Lacking
from flava_ds.evaluation.protocols import Predictions, Reading, Scorer
from flava_ds.evaluation.samples import Samples
from flava_ds.families.flava.capabilities import PREDICTS
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.objectives.masked_image import mask_patches
from flava_ds.objectives.masked_text import mask_tokens

MOST_SAMPLES = 1024
"""Per set; about ten thousand masked tokens or patches, for a standard error of half a per cent."""
KINDS = {"text": ("mlm",), "image": ("mim",), "pair": ("mmm_image", "mmm_text")}
"""Objectives per kind of input: text, images, pairs."""
ASKED_BY = "the demo's masked"
NONE = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class MaskedInputs:
    """Some samples with fixed masks. Inputs that the kind lacks are None, and what it does not predict is
    empty, as are `codes` without a codebook.

    Shapes:
        texts, masked_texts  b arrays of ids
        token_rows           [k]        rows of the concatenated texts to predict
        token_labels         [k]        the ids there
        pixels               [b c H W]  uint8
        patches              [b n]      bool, True for masked patches
        patch_rows           [k]        the same as flat indices into [b n]
        codes                [b n]      int64
    """

    size: int
    texts: Sequence[np.ndarray] = ()
    masked_texts: Sequence[np.ndarray] | None = None
    token_rows: Tensor = NONE
    token_labels: Tensor = NONE
    pixels: Tensor | None = None
    patches: Tensor | None = None
    patch_rows: Tensor = NONE
    codes: Tensor = NONE

    def read(self, scorer: Scorer) -> Reading:
        """Encodes the masked inputs."""
        return scorer.read(self.masked_texts, self.pixels, self.patches)

    def predictions(self, reading: Reading, name: str) -> Predictions:
        """Returns an objective's predictions."""
        text = name in ("mlm", "mmm_text")
        return reading.tokens(self.token_rows) if text else reading.codes(self.patch_rows)

    def labels(self, name: str) -> Tensor:
        """Returns an objective's targets: [k]."""
        text = name in ("mlm", "mmm_text")
        return self.token_labels if text else self.codes.flatten().index_select(0, self.patch_rows)


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Predicts masked tokens of held-out glosses, masked patches of unseen-style images, and both on pairs;
    returns accuracy, that of the most frequent target, and the mean cross-entropy.

    Masks are drawn from fixed seeds with the run's own masking settings; images are not augmented.
    """
    scorer = model.need(Scorer, ASKED_BY)
    metrics: dict[str, float] = {}
    for kind, wanted in KINDS.items():
        usable = [name for name in wanted if inputs.codebook or name in ("mlm", "mmm_text")]
        names = [name for name in usable if PREDICTS[name] in scorer.predicts]
        if names:
            metrics |= predict(
                model, inputs, kind, names, inputs.texts if kind == "text" else inputs.unseen_style
            )
    if not metrics:
        raise Lacking(inputs.codebook_problem or "the run trains no masked objective")
    return metrics


def predict(
    model: FrozenModel, inputs: Inputs, kind: str, names: list[str], samples: Samples
) -> dict[str, float]:
    """Measures all predictions from one kind of input, encoded once."""
    scorer = model.need(Scorer, ASKED_BY)
    sums = {name: np.zeros(3) for name in names}
    targets: dict[str, Counter[int]] = {name: Counter() for name in names}
    for masked in masked_inputs(model, inputs, kind, samples, MOST_SAMPLES):
        reading = masked.read(scorer)
        for name in names:
            labels = masked.labels(name)
            loss, correct = masked.predictions(reading, name).loss(labels)
            sums[name] += [float(loss), float(correct), len(labels)]
            targets[name].update(labels.tolist())
    metrics = {}
    for name, values in sums.items():
        nats, right, count = values.tolist()
        if not count:
            raise Lacking(f"masking selected nothing to predict for {name}; check objectives.{name}")
        metrics[f"masked/{name}/accuracy"] = right / count
        metrics[f"masked/{name}/accuracy{CHANCE}"] = targets[name].most_common(1)[0][1] / count
        metrics[f"masked/{name}/loss_nats"] = nats / count
    return metrics


def masked_inputs(
    model: FrozenModel, inputs: Inputs, kind: str, samples: Samples, most: int
) -> Iterator[MaskedInputs]:
    """Yields batches of one kind ('text', 'image', 'pair'), with masks fixed by each sample's index."""
    count = min(most, len(samples))
    if kind != "image":
        ids = model.tokenizer.encode_batch(samples.captions[:count], model.most_tokens[kind])
    codes = inputs.codes(samples, count) if kind != "text" and inputs.codebook is not None else NONE
    for start in range(0, count, BATCH_ROWS):
        rows = np.arange(start, min(start + BATCH_ROWS, count))
        fields: dict = {"size": len(rows)}
        if kind != "text":
            fields |= masked_image_fields(inputs, samples, rows, "mim" if kind == "image" else "mmm_image")
            fields["codes"] = codes[start : start + BATCH_ROWS]
        if kind != "image":
            masking = inputs.masking("mlm" if kind == "text" else "mmm_text")
            fields |= masked_text_fields(model.tokenizer, [ids[row] for row in rows], rows, masking)
        yield MaskedInputs(**fields)


def masked_image_fields(
    inputs: Inputs, samples: Samples, rows: np.ndarray, objective: str
) -> dict[str, Tensor]:
    """Returns pixels of the chosen images, and masks unless the run's configuration has no such objective."""
    pixels = {"pixels": samples.pixels(inputs.config.model.image_size)[rows]}
    if (masking := inputs.masking(objective)) is None:  # a family that masks no images
        return pixels
    mask = mask_patches(hash64(SEED, rows), FlavaConfig.of(inputs.config).image.grid_size, masking)
    return pixels | {
        "patches": torch.from_numpy(mask),
        "patch_rows": torch.from_numpy(np.flatnonzero(mask)),
    }


def masked_text_fields(
    tokenizer: WordPieceTokenizer, texts: list[np.ndarray], rows: np.ndarray, masking: Any
) -> dict[str, Any]:
    """Returns texts with their masks."""
    lengths = np.array([len(text) for text in texts])
    tokens = mask_tokens(hash64(SEED, rows), np.concatenate(texts), lengths, masking, tokenizer)
    masked, token_rows, labels = vars(tokens).values()
    return {
        "texts": texts,
        "masked_texts": np.split(masked, np.cumsum(lengths)[:-1]),
        "token_rows": torch.from_numpy(token_rows),
        "token_labels": torch.from_numpy(labels),
    }
