"""Applies a run's model to single held-out samples: retrieval, masked images, masked words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flava_ds.demo.evaluation.drawing import draw_captions, drawing_codebook
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.demo.evaluation.masked import PREDICTS, MaskedInputs, masked_inputs
from flava_ds.demo.evaluation.writing import write_captions
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.labelled import spaced
from flava_ds.evaluation.nearest import top_k
from flava_ds.evaluation.protocols import Scorer
from flava_ds.evaluation.samples import Samples
from flava_ds.generation import decoded
from flava_ds.report.pictures import cover, uri_of_bytes, uri_of_pixels

QUERIES, FOUND = 8, 5
"""Queries are evenly spaced, not chosen by how good they look."""
ASKED_BY = "the page's examples"
MASKED_PICTURES, MASKED_TEXTS, GUESSES = 8, 6, 3
CLOSING = frozenset(".,:;!?)]")


@dataclass(frozen=True)
class Picture:
    """One image with an alternative text."""

    uri: str
    alt: str
    right: bool = False


@dataclass(frozen=True)
class Caption:
    """One caption and whether it is correct."""

    text: str
    right: bool


@dataclass(frozen=True)
class Blank:
    """A masked token: the original, and the best guesses with their probabilities."""

    answer: str
    guesses: list[tuple[str, float]]


@dataclass(frozen=True)
class MaskedText:
    """A text as pieces, each a word or a Blank; captions include their image."""

    pieces: list[str | Blank]
    picture: Picture | None = None


def picture_of(samples: Samples, row: int, right: bool = False) -> Picture:
    """Returns the stored image of a sample."""
    record = samples.records[row]
    return Picture(uri_of_bytes(samples.encoded_images[row]), f"{record['label']}, {record['style']}", right)


def retrieve_images(model: FrozenModel, inputs: Inputs) -> list[tuple[str, list[Picture]]]:
    """Searches the unseen style by captions: the caption and the five nearest images."""
    samples, concepts = inputs.unseen_style, inputs.unseen_style.column("concept")
    rows = spaced(len(samples), QUERIES)
    captions = [samples.captions[row] for row in rows]
    found = (
        top_k(model.text_embeddings(captions, ASKED_BY), model.image_embeddings(samples, ASKED_BY), FOUND)
        .cpu()
        .numpy()
    )
    return [
        (caption, [picture_of(samples, hit, concepts[hit] == concepts[row]) for hit in hits])
        for caption, row, hits in zip(captions, rows.tolist(), found.tolist(), strict=True)
    ]


def retrieve_captions(model: FrozenModel, inputs: Inputs) -> list[tuple[Picture, list[Caption]]]:
    """Searches the captions of the unseen style by images; equal captions are shown once."""
    samples, concepts = inputs.unseen_style, inputs.unseen_style.column("concept")
    rows = spaced(len(samples), QUERIES)
    texts = list(dict.fromkeys(samples.captions))
    concept_of: dict[str, set[str]] = {}
    for text, concept in zip(samples.captions, concepts, strict=True):
        concept_of.setdefault(text, set()).add(concept)
    images = model.image_embeddings(samples, ASKED_BY)[torch.from_numpy(rows).to(model.device)]
    found = top_k(images, model.text_embeddings(texts, ASKED_BY), FOUND).cpu().numpy()
    return [
        (
            picture_of(samples, row),
            [Caption(texts[hit], concepts[row] in concept_of[texts[hit]]) for hit in hits],
        )
        for row, hits in zip(rows.tolist(), found.tolist(), strict=True)
    ]


@torch.inference_mode()
def reconstruct(model: FrozenModel, inputs: Inputs) -> list[list[Picture]]:
    """Fills masked images: original, masked, predicted codes, true codes, as drawn by the codebook.

    Raises: Lacking without a codebook that can draw, or without the MIM objective.
    """
    codebook = drawing_codebook(inputs)
    scorer = scorer_of(model, "mim", "masked patches")
    samples = inputs.unseen_style
    chosen = samples.select(spaced(len(samples), MASKED_PICTURES), "masked examples")
    [masked] = masked_inputs(model, inputs, "image", chosen, len(chosen))
    assert masked.pixels is not None and masked.patches is not None  # since the model predicts patches
    predicted = masked.codes.clone()
    predicted.view(-1)[masked.patch_rows] = masked_logits(scorer, masked, "mim").argmax(-1).cpu()
    codebook.to(model.device)
    drawn, own = (codebook.decode(codes.to(model.device)).cpu() for codes in (predicted, masked.codes))
    rows = []
    for row, record in enumerate(chosen.records):
        original = masked.pixels[row]
        versions = (
            ("original", original),
            ("masked", cover(original, masked.patches[row])),
            ("predicted", drawn[row]),
            ("codebook", own[row]),
        )
        rows.append(
            [Picture(uri_of_pixels(pixels), f"{record['label']}, {name}") for name, pixels in versions]
        )
    return rows


def draw(model: FrozenModel, inputs: Inputs) -> list[tuple[str, list[Picture]]]:
    """Draws held-out captions: caption, and its drawing, the codebook's of the true picture, and that one.

    Raises: Lacking without a codebook that can draw, or without the objective for codes of pairs.
    """
    codebook = drawing_codebook(inputs)
    scorer_of(model, "mmm_image", "an image from its caption")
    samples = inputs.unseen_style
    chosen = samples.select(spaced(len(samples), QUERIES), "captions to draw as examples")
    drawn = draw_captions(model, inputs, codebook, chosen)
    own = decoded(codebook, inputs.codes(chosen, len(chosen)).to(model.device), model.image_size)
    return [
        (
            chosen.captions[row],
            [
                Picture(uri_of_pixels(drawn[row]), "drawn"),
                Picture(uri_of_pixels(own[row]), "codebook"),
                picture_of(chosen, row),
            ],
        )
        for row in range(len(chosen))
    ]


def write(model: FrozenModel, inputs: Inputs) -> list[tuple[Picture, str]]:
    """Writes about held-out pictures: each with its caption. Raises: Lacking as scorer_of."""
    scorer_of(model, "mmm_text", "words beside a picture")
    samples = inputs.unseen_style
    chosen = samples.select(spaced(len(samples), QUERIES), "pictures to write about as examples")
    texts = write_captions(model, chosen)
    return [(picture_of(chosen, row), text) for row, text in enumerate(texts)]


def scorer_of(model: FrozenModel, name: str, what: str) -> Scorer:
    """Returns the scorer for an objective's masked positions. Raises: Lacking."""
    scorer = model.need(Scorer, ASKED_BY)
    if PREDICTS[name] not in scorer.predicts:
        raise Lacking(f"objectives.{name}.weight is 0, so nothing predicts {what}")
    return scorer


def masked_logits(scorer: Scorer, masked: MaskedInputs, name: str) -> torch.Tensor:
    """Scores an objective's predictions, one row per masked position: [k v] fp32."""
    return masked.predictions(masked.read(scorer), name).logits()


@torch.inference_mode()
def fill_texts(model: FrozenModel, inputs: Inputs, name: str) -> list[MaskedText]:
    """Fills masked words of glosses (name 'mlm') or of captions with their images ('mmm_text').

    Raises: Lacking if the run does not train the objective.
    """
    scorer = scorer_of(model, name, "masked words there")
    kind, samples = ("text", inputs.texts) if name == "mlm" else ("pair", inputs.unseen_style)
    chosen = samples.select(spaced(len(samples), MASKED_TEXTS), f"masked examples of {name}")
    [masked] = masked_inputs(model, inputs, kind, chosen, len(chosen))
    best = masked_logits(scorer, masked, name).softmax(-1).topk(GUESSES, dim=-1)
    blanks = {
        row: Blank(
            word(model, answer),
            [(word(model, token), share) for token, share in zip(tokens, shares, strict=True)],
        )
        for row, answer, tokens, shares in zip(
            masked.token_rows.tolist(),
            masked.token_labels.tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    }
    found, start = [], 0
    for number, text in enumerate(masked.texts):
        inner = range(1, len(text) - 1)  # without CLS and SEP
        pieces = join_pieces([blanks.get(start + place) or word(model, int(text[place])) for place in inner])
        found.append(MaskedText(pieces, picture_of(chosen, number) if kind == "pair" else None))
        start += len(text)
    return [text for text in found if any(isinstance(piece, Blank) for piece in text.pieces)]


def word(model: FrozenModel, token: int) -> str:
    """Returns the vocabulary's entry, or the number of a row beyond the vocabulary."""
    return model.tokenizer.token(token) if token < model.tokenizer.vocab_size else f"[{token}]"


def join_pieces(pieces: list[str | Blank]) -> list[str | Blank]:
    """Joins word continuations ('##ing') and closing punctuation to the piece before, except to blanks."""
    joined: list[str | Blank] = []
    for piece in pieces:
        if (
            isinstance(piece, str)
            and joined
            and isinstance(joined[-1], str)
            and (piece.startswith("##") or piece in CLOSING)
        ):
            joined[-1] += piece.removeprefix("##")
        else:
            joined.append(piece)
    return joined
