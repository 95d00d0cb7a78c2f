"""A trained model in five lines: load it, encode images and texts, match them, fill masked words.

docs/library.md shows examples; `flava_ds.load` is this module's `load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flava_ds.codebook.image_codebook import load_codebook
from flava_ds.errors import UserError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.opening import Opened, Precision, open_model
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM
from flava_ds.evaluation.protocols import Embedder, Matcher, Scorer, Writer
from flava_ds.evaluation.tuning.heads import MakeHead
from flava_ds.fine_tuned import FineTuned
from flava_ds.generation import Drawing, decoded, draw, write
from flava_ds.given import Picture, batches, check_texts, read_picture

__all__ = ["FineTuned", "Guess", "Model", "Picture", "load"]

MASK = "[MASK]"
ASKED_BY = "this call"


class Guess(NamedTuple):
    """A word for a masked token, and its probability."""

    word: str
    probability: float


def load(
    path: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    average: str | None = None,
) -> Model:
    """Opens a run (its latest checkpoint), one of its checkpoints, or a folder of Hugging Face of a known
    family; or, by its URL, a checkpoint in object storage, or the folder of a run's there.

    Nothing else is downloaded. `device` defaults to the GPU if there is one. A run trained in bf16 opens in
    bf16, everything else in fp32, unless `precision` is given. `average` names a training state, e.g. "ema",
    whose running average the weights are that it follows.

    Raises: CheckpointError or ConfigError in one line that names what is missing or does not fit; UserError
    for a file that cannot be read.
    """
    try:
        return _load(path, device, precision, average)
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError.of_system(error) from error


def _load(
    path: Path | str, device: torch.device | str | None, precision: Precision | None, average: str | None
) -> Model:
    path = path if "://" in str(path) else Path(path)
    if isinstance(path, Path) and not (path / "config.json").is_file():
        problem = (
            "holds no config.json" if path.is_dir() else "is a file" if path.is_file() else "no such folder"
        )
        raise UserError(f"{path}: {problem}; give a run, one of its checkpoints, or a model's folder")
    return Model(open_model(path, device=device, precision=precision, average=average))


class Model:
    """A trained model that returns tensors on its device, without gradients."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._model: FrozenModel = opened.frozen()

    def __repr__(self) -> str:
        described = self._model.described
        step = "" if described.step is None else f", step {described.step}"
        step += f", {described.average}" if described.average else ""
        return f"<{described.family} '{described.name}'{step} on {self._model.device}>"

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self._model.device

    @property
    def image_size(self) -> int:
        """Edge of the square that images are resized and cropped to, in pixels."""
        return self._model.image_size

    def encode_images(self, images: Sequence[Picture], *, batch_size: int = 64) -> Tensor:
        """Encodes images into the space that they share with texts.

        Resizes the shorter side to the model's size and crops the centre, as published.

        Shapes:
            returns  [len(images) r]  fp32, L2-normalised
        Raises: DataError that names an unreadable image; Lacking when the model has no such space.
        """
        embedder, found = self._model.need(Embedder, ASKED_BY, pictures_alone=True), []
        for some in batches(images, batch_size, "images"):
            found.append(embedder.project_images(embedder.image_features(self._pixels(some))))
        return torch.cat(found)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Encodes texts into the space that they share with images; truncates them as in training.

        Shapes:
            returns  [len(texts) r]  fp32, L2-normalised
        Raises: Lacking when the model has no such space.
        """
        embedder, found = self._model.need(Embedder, ASKED_BY), []
        for some in batches(texts, batch_size, "texts"):
            found.append(embedder.project_texts(embedder.text_features(self._ids(some, "pair"))))
        return torch.cat(found)

    def match(self, images: Sequence[Picture], texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Returns the probability that each text belongs to the image of the same index, given even odds.

        Reads both together, which is slower but more accurate than comparing vectors.

        Shapes:
            returns  [len(images)]  fp32, probabilities
        Raises: UserError when the numbers of texts and images differ; Lacking when the model has no matching
        head.
        """
        matcher, found = self._model.need(Matcher, ASKED_BY), []
        pairs = (batches(images, batch_size, "images"), batches(texts, batch_size, "texts"))
        if len(images) != len(texts):
            raise UserError(f"{len(images)} images and {len(texts)} texts; give one text for each image")
        for some, said in zip(*pairs, strict=True):
            [odds] = matcher.log_odds(self._pixels(some), [self._ids(said, "pair")])
            found.append(odds)
        return torch.cat(found).sigmoid()

    def fill_mask(self, text: str, image: Picture | None = None, *, top_k: int = 5) -> list[list[Guess]]:
        """Returns the likeliest words for each [MASK] in a text, in order, optionally given an image.

        Raises: UserError when the text has no [MASK], or one beyond the model's limit; Lacking when the model
        does not predict masked words.
        """
        if top_k < 1:
            raise UserError(f"top_k {top_k}: use at least 1")
        scorer, tokenizer = self._model.need(Scorer, ASKED_BY), self._model.tokenizer
        kind, what = ("text", "text") if image is None else ("pair", "text of a pair")
        if what not in scorer.predicts:
            known = " and ".join(sorted(scorer.predicts))
            raise UserError(f"{self!r} predicts masked {known}, but not {what}")
        [ids] = self._ids([text], kind)
        rows = np.flatnonzero(ids == tokenizer.mask_id)
        if not len(rows) or len(rows) < text.count(MASK):
            limit = self._model.most_tokens[kind]
            raise UserError(
                f"{text[:60]!r}: {len(rows)} {MASK} among the first {limit} tokens, which is all that "
                "the model reads; write one per word to fill"
            )
        pixels = None if image is None else self._pixels([image])
        shares = scorer.read([ids], pixels).tokens(torch.from_numpy(rows)).logits().softmax(-1)
        best = shares[:, : tokenizer.vocab_size].topk(min(top_k, tokenizer.vocab_size), dim=-1)
        return [
            [Guess(tokenizer.token(token), share) for token, share in zip(tokens, values, strict=True)]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def draw(
        self,
        texts: Sequence[str],
        *,
        steps: int = 8,
        guidance: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[Image.Image]:
        """Draws a picture for each text, by filling masked patches in `steps` turns (flava_ds/generation.py).

        A model that was trained with small masks draws badly; see docs/library.md. The same texts and seed
        give the same pictures.

        Raises: UserError without a codebook, or when the model does not predict the codes of a pair's image.
        """
        if steps < 1:
            raise UserError(f"steps {steps}: use at least 1")
        scorer, config = self._model.need(Scorer, ASKED_BY), self.opened.config
        batches(texts, 1, "texts")
        if "image of a pair" not in scorer.predicts or config.codebook_weights in (None, "random"):
            raise UserError(
                f"{self!r} cannot draw: it needs objectives.mmm_image and a codebook in codebook_weights"
            )
        codebook = load_codebook(config.codebook_weights, config.codebook).to(self.device)
        if codebook.decoder is None:
            raise UserError(f"{config.codebook_weights}: this codebook has no decoder, so it cannot draw")
        [empty] = self._ids([""], "pair")
        codes = draw(
            scorer,
            codebook,
            self._ids(texts, "pair"),
            empty,
            Drawing(steps=steps, guidance=guidance, temperature=temperature, seed=seed),
            image_size=self.image_size,
            num_patches=config.model.num_patches,
        )
        pictures = decoded(codebook, codes.to(self.device), self.image_size)
        return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]

    def caption(self, images: Sequence[Picture], *, words: int = 6) -> list[str]:
        """Writes a text of `words` tokens about each image, the surest token first; a model that writes token
        by token takes the likeliest next one, and may end before.

        Raises: DataError that names an unreadable image; UserError when the model does not predict masked
        words beside an image, or not so many.
        """
        tokenizer, most = self._model.tokenizer, self._model.most_tokens["pair"] - 2
        batches(images, 1, "images")
        writer = self._model.offered(Writer)
        scorer = None if writer is not None else self._model.need(Scorer, ASKED_BY)
        if not 1 <= words <= most or (scorer is not None and "text of a pair" not in scorer.predicts):
            raise UserError(
                f"words {words}: {self!r} writes 1 to {most} beside a picture, if it was trained with "
                "objectives.mmm_text or objectives.prefix_lm"
            )
        pixels = self._pixels(images)
        if writer is not None:
            texts = writer.write(pixels, words=words)
        else:
            assert scorer is not None  # needed above
            texts, _ = write(scorer, tokenizer, pixels, words=words)
        return [tokenizer.decode(text) for text in texts]

    def fine_tuned(self, path: Path | str, make_head: MakeHead | None = None) -> FineTuned:
        """Opens the encoder and the head that `flava-ds evaluate --keep-weights` wrote of this model.
        `make_head` (features of a state, outputs) makes a head of a class of your own.

        Raises: UserError for a file of something else, or of another model; Lacking.
        """
        if not isinstance(path, str | Path):
            raise UserError(f"{path!r}: give the path of a file of kept weights")
        return FineTuned(Path(path), self._model, make_head)

    def _pixels(self, images: Sequence[Picture]) -> Tensor:
        """Reads and transforms images: [b 3 H W] uint8."""
        return torch.stack([CLIP_TRANSFORM(read_picture(image), self.image_size) for image in images])

    def _ids(self, texts: Sequence[str], kind: str) -> list[np.ndarray]:
        """Encodes texts, truncated like those of their kind. Raises: UserError for what is no text."""
        check_texts(texts)
        return self._model.tokenizer.encode_batch(texts, self._model.most_tokens[kind])
