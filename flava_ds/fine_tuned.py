"""A model with the encoder and head that a fine-tuning kept: answers about texts, images, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.errors import UserError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.protocols import ImageStates, PairStates, TextStates
from flava_ds.evaluation.tuning.fitting import Network, ids_of
from flava_ds.evaluation.tuning.heads import HEADS, MakeHead, build_head
from flava_ds.evaluation.tuning.kept import (
    IMAGES,
    IMAGES_WITH_TEXT,
    PAIRS_OF_TEXTS,
    TEXTS,
    TRANSFORMS,
    Facts,
    open_kept,
    words_of,
)
from flava_ds.given import Picture, batches, check_texts, read_picture
from flava_ds.storage.tensor_files import TensorFile

READS = {
    TEXTS: ("texts",),
    PAIRS_OF_TEXTS: ("texts", "second"),
    IMAGES: ("images",),
    IMAGES_WITH_TEXT: ("texts", "images"),
}
"""What `predict` wants, by what the head reads the states of."""
LARGEST = 16
"""Edge of a task's images over that of the model's, at most."""


class FineTuned:
    """What a fine-tuning reported, ready to use; `Model.fine_tuned` opens it."""

    def __init__(self, path: Path, model: FrozenModel, make_head: MakeHead | None = None) -> None:
        """Reads the weights that `path` keeps, of `model` or of one like it. `make_head` makes the head of a
        task whose head has a class of its own.

        Raises: UserError for a file of something else, or of another model; Lacking.
        """
        self._facts, file = open_kept(path)
        self._model = model
        try:
            self._network = _network(self._facts, file, model, make_head)
        finally:
            file.close()

    def __repr__(self) -> str:
        return f"<{self._facts.task} after update {self._facts.update} of {self._model.described.name}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """What the columns of `predict` stand for; empty if the task's answer is a number."""
        return self._facts.meaning.names

    @torch.inference_mode()
    def predict(
        self,
        texts: Sequence[str] | None = None,
        *,
        second: Sequence[str] | None = None,
        images: Sequence[Picture] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Returns what the head says of each text, of each pair of texts with `second`, of each image, or of
        each image with its text: probabilities of the classes, or a number.

        Texts are truncated and images resized as in the fine-tuning.

        Shapes:
            returns  [N z]  fp32, of N texts or images; z is 1 for a number
        Raises: UserError where the task reads something else; DataError that names an unreadable image.
        """
        states, given = self._facts.states, {"texts": texts, "second": second, "images": images}
        there = {name: own for name, own in given.items() if own is not None}
        if tuple(there) != READS[states]:
            wanted = " and ".join(READS[states])
            raise UserError(f"task {self._facts.task} reads {states}; give {wanted}, nothing else")
        for name, own in there.items():
            batches(own, batch_size, name)
        (first, count), *others = ((name, len(own)) for name, own in there.items())
        for name, number in others:
            if number != count:
                raise UserError(f"{count} {first} and {number} {name}; give one for each text")
        check_texts([text for own in (texts, second) if own is not None for text in own])
        ids = [np.empty(0, dtype=np.int64)] * count  # of images alone
        if texts is not None:
            ids = ids_of(self._model, "pair" if states == IMAGES_WITH_TEXT else "text", texts, second)
        found = []
        for rows in batches(range(count), batch_size, first):
            pixels = None if images is None else self._pixels([images[row] for row in rows])
            logits = self._network([ids[row] for row in rows], pixels)
            found.append(self._facts.meaning.of(logits))
        return torch.cat(found)

    def _pixels(self, images: Sequence[Picture]) -> Tensor:
        """Reads images and resizes them, as in the fine-tuning: [b 3 H W] uint8."""
        size, transform = self._facts.image_size, TRANSFORMS[self._facts.states]
        return torch.stack([transform(read_picture(image), size) for image in images])


def _network(facts: Facts, file: TensorFile, model: FrozenModel, make_head: MakeHead | None) -> Network:
    """Builds the encoder and the head with the weights of a file, in the precision of the model."""
    where, other = file.where, f"was fine-tuned from another model than {model.described.name}"
    make = make_head or HEADS.get(facts.head)
    if make is None:
        raise UserError(f"{where}: its head has a class of its own; give it as make_head")
    if facts.states != IMAGES and facts.words != words_of(model):
        raise UserError(f"{where}: {other}, with other words; open the model that it was made from")
    asked_by = f"task {facts.task} of {where}"
    if facts.states in TRANSFORMS:
        if not 0 < facts.image_size <= LARGEST * model.image_size:
            raise UserError(f"{where}: is for images of {facts.image_size} pixels, not of {model.image_size}")
        scale = facts.image_size / model.image_size
        if facts.states == IMAGES:
            encoder: Any = model.need(ImageStates, asked_by).image_states(scale)
        else:
            encoder = model.need(PairStates, asked_by).pair_states(scale)
    else:
        encoder = model.need(TextStates, asked_by).text_states()
    if getattr(encoder, "stored_regions", None) is not None:
        raise UserError(
            f"{where}: reads regions, and {model.described.name} has only those that a detector found "
            "before; evaluate it on their images, with `flava-ds evaluate`"
        )
    head = build_head(make, encoder.width, facts.meaning.outputs, seed=0)
    network = Network(encoder, head).to(model.device).eval().requires_grad_(False)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: entry.shape for name, entry in file.entries.items()}
    for name in sorted(found | expected):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{where}: {other}: '{name}' is {_shown(found.get(name))} there and "
                f"{_shown(expected.get(name))} here; open the model that it was made from"
            )
    network.load_state_dict({name: file.read(name) for name in found})
    return network


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
