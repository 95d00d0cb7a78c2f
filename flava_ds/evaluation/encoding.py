"""A model that does not change while it is evaluated, and the features that several evaluators share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.evaluation.inputs import Inputs
from flava_ds.evaluation.samples import Samples
from flava_ds.families.flava.task import FlavaTask
from flava_ds.families.flava.views import Kind, View

BATCH_ROWS = 128
SOURCE = "evaluation"


@dataclass(frozen=True)
class Features:
    """What the image encoder makes of a set, in fp32.

    Shapes:
        embeddings  [N r]  projected into the contrastive space, L2-normalised
        cls         [N d]  CLS after the final LayerNorm, not projected
    """

    embeddings: Tensor
    cls: Tensor


class FrozenModel:
    """Encodes whole sets in batches and keeps the image features of every set. Make a new one after every update of the weights."""

    def __init__(self, module: FlavaTask, inputs: Inputs):
        self.module, self.model, self.inputs = module, module.model, inputs
        self.device = next(module.parameters()).device
        if inputs.codebook is not None:
            inputs.codebook.to(self.device)
        self._features: dict[Samples, Features] = {}

    @torch.inference_mode()
    def images(self, samples: Samples) -> Features:
        """Encodes the pictures of a set."""
        if samples not in self._features:
            embeddings, cls = [], []
            for batch in self.image_batches(samples):
                encoded = self.model.encode(batch, {View.IMAGE})[View.IMAGE]
                embeddings.append(self.model.image_embeddings(encoded.first()).float())
                cls.append(encoded.first().float())
            self._features[samples] = Features(torch.cat(embeddings), torch.cat(cls))
        return self._features[samples]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encodes texts into the contrastive space, L2-normalised in fp32: [len(texts) r]."""
        ids = self.inputs.tokenizer.encode_batch(texts, self.inputs.max_tokens("pair"))
        found = []
        for start in range(0, len(ids), BATCH_ROWS):
            batch = text_batch(ids[start : start + BATCH_ROWS]).to(self.device)
            found.append(self.model.text_embeddings(self.model.encode(batch, {View.TEXT})[View.TEXT].first()).float())
        return torch.cat(found)

    def image_batches(self, samples: Samples):
        """Yields the set's pictures as batches of the image kind, on the model's device."""
        pixels = samples.pixels(self.inputs.config.model.image.image_size)
        for rows in pixels.split(BATCH_ROWS):
            yield Batch(kind=Kind.IMAGE, source=SOURCE, size=len(rows), tensors={"pixel_values": rows}).to(self.device)


def text_batch(ids: Sequence[np.ndarray]) -> Batch:
    """Packs encoded texts end to end."""
    lengths = [len(text) for text in ids]
    tensors = {
        "input_ids": torch.from_numpy(np.concatenate(ids)),
        "cu_seqlens": torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
    }
    numbers = {"max_seqlen": max(lengths)}
    return Batch(kind=Kind.TEXT, source=SOURCE, size=len(ids), tensors=tensors, numbers=numbers)
