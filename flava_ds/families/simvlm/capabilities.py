"""SimVLM's capabilities for evaluation: likelihoods of texts, texts about images, features, states to tune.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.batch import Packed
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.families.offers import Tunable
from flava_ds.families.simvlm.model import Simvlm
from flava_ds.layers.patches import enlarged_edge
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.layers.words import PackedIds, pack
from flava_ds.training.task import Task

LACKS = {
    "Embedder": "SimVLM trains no space that images and texts share",
    "Scorer": "SimVLM predicts the next token, none that is masked",
}
"""Capabilities that SimVLM lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a SimVLM with its objectives, and what it lacks: protocol -> reason."""
    kinds, tokenizer = module.kinds, config.model.load_tokenizer(config)
    parts: list[object] = [SimvlmFeatures(module.model, tokenizer.cls_id)]
    if "pair" in kinds:
        parts.append(SimvlmWriter(module.model, tokenizer))
    if {"pair", "text"} <= set(kinds):
        return (*parts, SimvlmMatcher(module.model)), dict(LACKS)
    untrained = "texts alone, by which a caption's likelihood is judged" if "pair" in kinds else "pairs"
    return tuple(parts), {**LACKS, "Matcher": f"the run trains on no {untrained}"}


class SimvlmPart:
    """Runs a SimVLM on images and texts, without a training batch."""

    def __init__(self, model: Simvlm) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.words.weight.device

    def starts(self, texts: Sequence[np.ndarray]) -> PackedIds:
        """Returns the shortest prefixes, the first token of each text."""
        return pack([text[:1] for text in texts], self.device)

    def patches(self, pixels: Tensor) -> Tensor:
        """Embeds images: [b c H W] uint8 -> [b n d]."""
        return self.model.embed_images(pixels.to(self.device))

    def last_states(self, memory: Packed, texts: Sequence[np.ndarray]) -> Tensor:
        """Returns the decoder's state of each text's last token: [b d]."""
        packed = pack(texts, self.device)
        return self.model.write(memory, packed).rows(packed.cu_seqlens[1:].long() - 1)

    def text_states_of(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Returns the last state of texts that are both read and written: [b d]."""
        return self.last_states(self.model.read(pack(texts, self.device)), texts)

    def log_likelihoods(self, memory: Packed, texts: Sequence[np.ndarray]) -> Tensor:
        """Returns the log likelihood of each text after its first token: [b] fp32."""
        written = pack([text[:-1] for text in texts], self.device)
        hidden = self.model.write(memory, written).last_hidden_state()
        labels = torch.from_numpy(np.concatenate([text[1:] for text in texts])).to(self.device)
        sample = torch.repeat_interleave(
            torch.arange(len(texts), device=self.device), written.cu_seqlens.diff().long()
        )
        logits = at_least_fp32(hidden @ self.model.word_table().mT)
        found = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        return found.new_zeros(len(texts)).index_add(0, sample, found)


class SimvlmMatcher(SimvlmPart):
    """log p(text | image) - log p(text), both by the model, which are the log odds that a pair matches when
    the text of one that does not is any text.
    """

    @torch.inference_mode()
    def log_odds(self, pixels: Tensor, pairings: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        """Scores images against one or several captions each; images are encoded once, and texts that are
        alike are judged once without an image.

        Shapes:
            pixels    [b c H W]  uint8
            pairings  each b arrays of ids
            returns   one [b] fp32 for each pairing
        """
        beside = self.model.read(self.starts(pairings[0]), self.patches(pixels))
        return [self.log_likelihoods(beside, texts) - self.alone(texts) for texts in pairings]

    def alone(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Returns log p(text): [b]."""
        places: dict[bytes, int] = {}
        rows = [places.setdefault(text.tobytes(), len(places)) for text in texts]
        unique = [texts[rows.index(place)] for place in range(len(places))]
        found = self.log_likelihoods(self.model.read(self.starts(unique)), unique)
        return found[torch.tensor(rows, device=found.device)]


class SimvlmWriter(SimvlmPart):
    """Texts about images."""

    def __init__(self, model: Simvlm, tokenizer: WordPieceTokenizer) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def write(self, pixels: Tensor, *, words: int) -> list[list[int]]:
        """Writes at most `words` tokens about each image, each time the likeliest, until [SEP].

        Shapes:
            pixels   [b c H W]  uint8
            returns  b lists of ids without special tokens
        """
        count = len(pixels)
        texts = torch.full((count, 1), self.tokenizer.cls_id, device=self.device)
        forbidden = [own for own in self.tokenizer.special_ids if own != self.tokenizer.sep_id]
        memory = self.model.read(self.starts(list(texts.cpu().numpy())), self.patches(pixels))
        for _ in range(words):
            hidden = self.last_states(memory, list(texts.cpu().numpy()))
            scores = at_least_fp32(hidden @ self.model.word_table().mT)[:, : self.tokenizer.vocab_size]
            scores[:, forbidden] = -torch.inf
            texts = torch.cat([texts, scores.argmax(-1, keepdim=True)], dim=1)
        written = [[*text[1:], self.tokenizer.sep_id] for text in texts.tolist()]
        return [text[: text.index(self.tokenizer.sep_id)] for text in written]


class SimvlmFeatures(SimvlmPart):
    """One vector per image, the mean of the encoder's patches; one per text, read and written whole."""

    def __init__(self, model: Simvlm, cls_id: int) -> None:
        super().__init__(model)
        self.cls_id = cls_id

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encodes images, with the first token that every text has: [b c H W] uint8 -> [b d]."""
        return image_vectors(self.model, pixels, cls_id=self.cls_id)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Encodes b arrays of ids: -> [b d], in the model's dtype."""
        return self.text_states_of(texts)

    def text_states(self) -> Tunable:
        """Returns a copy of the model to fine-tune on texts: the decoder's state of a text's last token, when
        the encoder has read the whole text. The model stays unchanged.

        Source: Wang et al. 2022, section 4.1, after BART (Lewis et al. 2020); recalled.
        """
        model: Simvlm = copy.deepcopy(self.model).requires_grad_(True)
        read, unread = (model.parameters_of(view, read_directly=True) for view in ("text_suffix", "suffix"))
        for name in unread - read:
            model.get_parameter(name).requires_grad_(False)

        def states(model: Simvlm, texts: Sequence[np.ndarray], _: None) -> Tensor:
            return SimvlmPart(model).text_states_of(texts)

        return Tunable(states, width=model.config.decoder.hidden_size, model=model)

    def image_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy of the encoder to fine-tune on images, `scale` times as large, in whole patches. The
        first token's embedding and position stay as they are."""
        config, model, cls_id = self.model.config, copy.deepcopy(self.model), self.cls_id
        del model.decoder, model.decoder_norm, model.suffix_positions
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("words", "prefix_positions")))

        def states(model: Simvlm, _: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
            return image_vectors(model, pixels, cls_id=cls_id)

        edge = enlarged_edge(config.image, scale)
        return Tunable(states, width=config.encoder.hidden_size, image_size=edge, encoder=model)

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy to fine-tune on pairs, for images `scale` times as large, in whole patches: the
        decoder's state of a text's last token, when the encoder has read the image.

        Source: Wang et al. 2022, section 4.1; recalled.
        """
        config, model = self.model.config, copy.deepcopy(self.model).requires_grad_(True)

        def states(model: Simvlm, texts: Sequence[np.ndarray], pixels: Tensor) -> Tensor:
            part = SimvlmPart(model)
            return part.last_states(model.read(part.starts(texts), part.patches(pixels)), texts)

        edge = enlarged_edge(config.image, scale)
        return Tunable(states, width=config.decoder.hidden_size, image_size=edge, model=model)


def image_vectors(model: Simvlm, pixels: Tensor, *, cls_id: int) -> Tensor:
    """Returns the mean of an image's patches after the encoder, which reads the first token that every text
    has as well: [b c H W] -> [b d].
    """
    part = SimvlmPart(model)
    patches = part.patches(pixels)
    count, length = patches.shape[:2]
    memory = model.read(part.starts([np.array([cls_id])] * count), patches)
    return memory.hidden.unflatten(0, (count, length + 1))[:, :length].mean(1)
