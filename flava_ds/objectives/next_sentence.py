"""Next-sentence prediction: does the second segment of a text follow the first? (BERT)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import Share
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.data.order import uniforms
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.data.samples import Sample, tags_of
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.data.two_segments import joined, segments, sentences
from flava_ds.objectives.base import Loss, Objective, classified

_CUT_STREAM = 15


@dataclass(frozen=True, kw_only=True)
class NextSentenceConfig(ObjectiveConfig, type="nsp"):
    """Next-sentence prediction (NSP): the second segment is another text's with the given probability."""

    random_probability: Share = 0.5
    """Probability that the second segment comes from another text."""

    kinds: ClassVar[frozenset[str]] = frozenset({"text"})
    title: ClassVar[str] = "Next sentence"
    drawn_once: ClassVar[tuple[str, ...]] = ("random_probability",)
    view: ClassVar[str] = "text_masked"

    def classes(self, config: Any) -> int:
        return 2

    def corruptions(self, config: Any, source: Any) -> tuple[Segments]:
        return (Segments(config.model.load_tokenizer(config).sep_id),)

    def build(self, config: Any) -> NextSentence:
        return NextSentence(self, config.model.shape_of(self.view).hidden_size)

    def check(self, where: str, config: Any) -> None:
        config.model.check_provides("pooled", where)


@dataclass(frozen=True, kw_only=True)
class SentenceImageConfig(NextSentenceConfig, type="sentence_image"):
    """Sentence-image prediction: of two captions of an image, the second is another's with the given
    probability.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"pair"})
    title: ClassVar[str] = "Sentence and image"
    view: ClassVar[str] = "multimodal_masked"

    def check(self, where: str, config: Any) -> None:
        super().check(where, config)
        config.model.check_provides("caption_pairs", where)


@dataclass(frozen=True)
class SentencePairs:
    """Composes [CLS] first [SEP] second [SEP] from a sample's own text and, where drawn, another sample's.

    A text is cut at the end of one of its sentences, or between two words if it has only one sentence; the
    sample's seed says where. The second segment is the rest, or the rest of the other text, cut by the same
    draw. If a pair is too long, the longer segment loses its end. A text of one word is not cut, and stays
    alone even if the draw gave it another text.

    Source: Devlin et al. 2019, BERT, appendix A.2. There documents are lists of sentences, of which a pair
    takes as many as fit; here the passages of the shards are the documents.
    """

    tokenizer: WordPieceTokenizer

    def __call__(
        self, samples: Sequence[Sample], borrowed: Mapping[int, str], max_tokens: int
    ) -> tuple[list[np.ndarray], int]:
        seeds = np.array([sample.seed for sample in samples], dtype=np.uint64)
        draws = uniforms(seeds, 1, stream=_CUT_STREAM)[:, 0].tolist()
        pairs = [
            self.segments_of(sample, borrowed.get(row), draw)
            for row, (sample, draw) in enumerate(zip(samples, draws, strict=True))
        ]
        firsts, seconds = (self._encoded([pair[side] for pair in pairs]) for side in (0, 1))
        found, lost = [], 0
        for one, other in zip(firsts, seconds, strict=True):
            alone = len(other) <= 2
            ids = self._shortened(one, max_tokens) if alone else joined(one, other, max_tokens)
            lost += len(one) + (0 if alone else len(other) - 1) - len(ids)
            found.append(ids)
        return found, lost

    def segments_of(self, sample: Sample, other: str | None, draw: float) -> tuple[str, str]:
        """Returns both segments of a sample, the second empty if it has one; `draw` in [0, 1) is its own."""
        first, second = cut(str(sample.text), draw)
        if second and other is not None:
            start, rest = cut(other, draw)
            second = rest or start
        return first, second

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes segments of any length, without the [SEP]s that a text may spell out."""
        longest = max(map(len, texts)) + 2  # a token has at least one character
        encoded = self.tokenizer.encode_batch(texts, longest)
        ends = self.tokenizer.sep_id
        return [ids[np.append(ids[:-1] != ends, True)] for ids in encoded]

    def _shortened(self, ids: np.ndarray, max_tokens: int) -> np.ndarray:
        return np.append(ids[: max_tokens - 1], ids[-1]) if len(ids) > max_tokens else ids


@dataclass(frozen=True)
class CaptionPairs(SentencePairs):
    """Composes [CLS] caption [SEP] second caption [SEP] from two captions of an image.

    Where drawn, the second is another image's. An image with one caption has it cut in two, as a passage is.

    Source: Li et al. 2019, VisualBERT, section 3.3.
    """

    def segments_of(self, sample: Sample, other: str | None, draw: float) -> tuple[str, str]:
        own = [text for text in sample.captions if text != sample.text]
        if not own:
            return super().segments_of(sample, other, draw)
        return str(sample.text), own[int(draw * len(own))] if other is None else other


@dataclass(frozen=True)
class LinePairs(SentencePairs):
    """Composes [CLS] first line [SEP] the rest [SEP]; a text of one line has no second segment."""

    def segments_of(self, sample: Sample, other: str | None, draw: float) -> tuple[str, str]:
        first, _, second = str(sample.text).partition("\n")
        return first, second


def cut(text: str, draw: float) -> tuple[str, str]:
    """Cuts a text at a sentence's end, or between words, chosen by a draw in [0, 1); one word stays whole."""
    parts = list(sentences(text))
    parts = parts if len(parts) > 1 else text.split()
    place = 1 + int(draw * (len(parts) - 1))
    return " ".join(parts[:place]), " ".join(parts[place:])


@dataclass(frozen=True)
class TaggedCaptions(SentencePairs):
    """Composes [CLS] caption [SEP] tags [SEP] from a caption, where drawn another's, and the regions' tags.

    Source: Li et al. 2020, Oscar, section 3; Zhang et al. 2021, VinVL, section 3.
    """

    def segments_of(self, sample: Sample, other: str | None, draw: float) -> tuple[str, str]:
        return str(sample.text if other is None else other), tags_of(sample)


@dataclass(frozen=True)
class TokenTypes:
    """Adds

    Shapes:
        token_types  [T]  int64, 0 in the first segment of a text, 1 in the second
    """

    sep_id: int

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        assert draft.input_ids is not None and draft.lengths is not None  # only texts have segments
        return {"token_types": segments(draft.input_ids, draft.lengths, self.sep_id)[0]}

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8 * plan.max_tokens


@dataclass(frozen=True)
class Segments:
    """Numbers the segments, and labels the texts that have two. Adds

    Shapes:
        token_types  [T]  int64, 0 in the first segment, 1 in the second
        nsp_samples  [m]  int64, samples with two segments
        nsp_labels   [m]  int64, 0 if the second follows the first, 1 if it is another text's
    """

    sep_id: int

    def __call__(self, draft: Draft) -> Mapping[str, np.ndarray]:
        assert draft.input_ids is not None and draft.lengths is not None  # only text batches have segments
        types, counts = segments(draft.input_ids, draft.lengths, self.sep_id)
        samples = np.flatnonzero(counts == 2)
        return {
            "token_types": types,
            "nsp_samples": samples,
            "nsp_labels": (~draft.matched[samples]).astype(np.int64),
        }

    def bytes_per_sample(self, plan: BatchPlan) -> int:
        return 8 * plan.max_tokens + 16


class NextSentence(Objective):
    """Two-way cross-entropy on the pooled CLS of the masked text, over the texts with two segments."""

    def __init__(self, config: NextSentenceConfig, hidden_size: int):
        super().__init__(config.weight)
        self.kinds, self.view, self.needs = config.kinds, config.view, frozenset({config.view})
        self.classifier = nn.Linear(hidden_size, 2)

    def count(self, batch: Batch) -> int:
        return batch["nsp_labels"].shape[0]

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {self.view: model.first_rows(self.view, batch).index_select(0, batch["nsp_samples"])}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        return classified(self.classifier(model.pooled(hidden[self.view])), batch["nsp_labels"])

    def model_parameters(self, model: Any) -> set[str]:
        return super().model_parameters(model) | model.pooler_parameters()
