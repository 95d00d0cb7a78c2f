"""What a run's model does with single held-out samples: retrieval, masked pictures, masked words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.evaluation.encoding import FrozenModel
from flava_ds.evaluation.inputs import Inputs
from flava_ds.evaluation.masked import masked_batches
from flava_ds.evaluation.nearest import top_k
from flava_ds.evaluation.samples import Samples
from flava_ds.families.flava.views import Kind
from flava_ds.report.pictures import cover, uri_of_bytes, uri_of_pixels

QUERIES, FOUND = 8, 5
MASKED_PICTURES, MASKED_TEXTS, GUESSES = 8, 6, 3
CLOSING = frozenset(".,:;!?)]")


class Missing(Exception):
    """A section that cannot be filled; the message says why."""


@dataclass(frozen=True)
class Picture:
    """One picture with the words that describe it to who cannot see it."""

    uri: str
    alt: str
    right: bool = False


@dataclass(frozen=True)
class Caption:
    """One caption and whether it is a right answer."""

    text: str
    right: bool


@dataclass(frozen=True)
class Blank:
    """A masked token: what stood there, and the best guesses with their probabilities."""

    answer: str
    guesses: list[tuple[str, float]]


@dataclass(frozen=True)
class MaskedText:
    """A text as pieces, each a word or a Blank; with its picture if it is a caption."""

    pieces: list[str | Blank]
    picture: Picture | None = None


def spaced(count: int, most: int) -> np.ndarray:
    """Returns at most `most` rows at even distances: examples are not chosen by how good they look."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def picture_of(samples: Samples, row: int, right: bool = False) -> Picture:
    """The stored picture of a sample."""
    record = samples.records[row]
    return Picture(uri_of_bytes(samples.encoded_images[row]), f"{record['label']}, {record['style']}", right)


def retrieve_images(model: FrozenModel, inputs: Inputs) -> list[tuple[str, list[Picture]]]:
    """Searches the unseen style by captions: the caption and the five nearest images."""
    samples, concepts = inputs.unseen_style, inputs.unseen_style.column("concept")
    rows = spaced(len(samples), QUERIES)
    captions = [samples.captions[row] for row in rows]
    found = top_k(model.texts(captions), model.images(samples).embeddings, FOUND).cpu().numpy()
    return [
        (caption, [picture_of(samples, hit, concepts[hit] == concepts[row]) for hit in hits])
        for caption, row, hits in zip(captions, rows.tolist(), found.tolist(), strict=True)
    ]


def retrieve_captions(model: FrozenModel, inputs: Inputs) -> list[tuple[Picture, list[Caption]]]:
    """Searches the captions of the unseen style by images; captions that read the same are shown once."""
    samples, concepts = inputs.unseen_style, inputs.unseen_style.column("concept")
    rows = spaced(len(samples), QUERIES)
    texts = list(dict.fromkeys(samples.captions))
    concept_of: dict[str, set[str]] = {}
    for text, concept in zip(samples.captions, concepts, strict=True):
        concept_of.setdefault(text, set()).add(concept)
    images = model.images(samples).embeddings[torch.from_numpy(rows).to(model.device)]
    found = top_k(images, model.texts(texts), FOUND).cpu().numpy()
    return [
        (picture_of(samples, row), [Caption(texts[hit], concepts[row] in concept_of[texts[hit]]) for hit in hits])
        for row, hits in zip(rows.tolist(), found.tolist(), strict=True)
    ]


@torch.inference_mode()
def reconstruct(model: FrozenModel, inputs: Inputs) -> list[list[Picture]]:
    """Fills masked pictures: original, masked, predicted codes drawn by the codebook, and the codebook's own drawing of the true codes.

    Raises: Missing without a codebook that can draw, or without the MIM objective.
    """
    codebook = drawing_codebook(inputs)
    if "mim" not in model.module.objectives:
        raise Missing("objectives.mim.weight is 0, so nothing predicts masked patches")
    samples = inputs.unseen_style
    chosen = samples.select(spaced(len(samples), MASKED_PICTURES), "masked examples")
    [batch] = masked_batches(inputs, Kind.IMAGE, chosen, len(chosen))
    predicted = batch["image_codes"].clone()
    predicted.view(-1)[batch["mim_rows"]] = masked_logits(model, batch, "mim").argmax(-1).cpu()
    drawn, own = (codebook.decode(codes.to(model.device)).cpu() for codes in (predicted, batch["image_codes"]))
    rows = []
    for row, record in enumerate(chosen.records):
        original = batch["pixel_values"][row]
        versions = (("original", original), ("masked", cover(original, batch["bool_masked_pos"][row])), ("predicted", drawn[row]), ("codebook", own[row]))
        rows.append([Picture(uri_of_pixels(pixels), f"{record['label']}, {name}") for name, pixels in versions])
    return rows


def drawing_codebook(inputs: Inputs) -> ImageCodebook:
    """Returns the run's codebook if it can turn codes into pictures."""
    if inputs.codebook is None:
        raise Missing(inputs.codebook_problem)
    if inputs.codebook.decoder is None:
        raise Missing("the codebook was loaded without a decoder, so codes cannot be drawn")
    return inputs.codebook


def masked_logits(model: FrozenModel, batch: Batch, name: str) -> torch.Tensor:
    """Scores what an objective predicts, one row per masked place: [k v] fp32."""
    objective, batch = model.module.objectives[name], batch.to(model.device)
    encoded = model.model.encode(batch, objective.needs)
    rows = objective.reads(model.model, batch)[objective.view]
    return objective.head.logits(encoded[objective.view].rows(rows)).float()


@torch.inference_mode()
def fill_texts(model: FrozenModel, inputs: Inputs, name: str) -> list[MaskedText]:
    """Fills masked words of glosses (name 'mlm') or of captions beside their pictures ('mmm_text').

    Raises: Missing when the run does not train the objective.
    """
    if name not in model.module.objectives:
        raise Missing(f"objectives.{name}.weight is 0, so nothing predicts masked words there")
    kind, samples = (Kind.TEXT, inputs.texts) if name == "mlm" else (Kind.PAIR, inputs.unseen_style)
    chosen = samples.select(spaced(len(samples), MASKED_TEXTS), f"masked examples of {name}")
    [batch] = masked_batches(inputs, kind, chosen, len(chosen))
    best = masked_logits(model, batch, name).softmax(-1).topk(GUESSES, dim=-1)
    blanks = {
        row: Blank(word(inputs, answer), [(word(inputs, token), share) for token, share in zip(tokens, shares, strict=True)])
        for row, answer, tokens, shares in zip(
            batch["mlm_rows"].tolist(), batch["mlm_labels"].tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    }
    ends = batch["cu_seqlens"].tolist()
    found = []
    for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        inner = range(start + 1, end - 1)  # without CLS and SEP
        pieces = join_pieces([blanks.get(row) or word(inputs, int(batch["input_ids"][row])) for row in inner])
        found.append(MaskedText(pieces, picture_of(chosen, number) if kind == Kind.PAIR else None))
    return [text for text in found if any(isinstance(piece, Blank) for piece in text.pieces)]


def word(inputs: Inputs, token: int) -> str:
    """Returns the vocabulary's entry, or the number of a row that the model has beyond it."""
    return inputs.tokenizer.token(token) if token < inputs.tokenizer.vocab_size else f"[{token}]"


def join_pieces(pieces: list[str | Blank]) -> list[str | Blank]:
    """Glues pieces that continue a word ('##ing') and closing punctuation to the piece before, if that is no blank."""
    joined: list[str | Blank] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str) and (piece.startswith("##") or piece in CLOSING):
            joined[-1] += piece.removeprefix("##")
        else:
            joined.append(piece)
    return joined
