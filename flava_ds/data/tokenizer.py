"""BERT's uncased WordPiece, run by Hugging Face's Rust tokenizers on whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from flava_ds.config import did_you_mean
from flava_ds.errors import DataError

VOCABULARY_FOLDER = Path(__file__).parent / "vocab"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary_file(vocabulary: str) -> Path:
    """Finds a vocabulary by the path of its vocab.txt, or by its name under flava_ds/data/vocab (NAME.txt or NAME/vocab.txt).

    Raises: DataError with the known names.
    """
    for candidate in (Path(vocabulary).expanduser(), VOCABULARY_FOLDER / f"{vocabulary}.txt", VOCABULARY_FOLDER / vocabulary / "vocab.txt"):
        if candidate.is_file():
            return candidate
    known = sorted({path.stem for path in VOCABULARY_FOLDER.glob("*.txt")} | {path.parent.name for path in VOCABULARY_FOLDER.glob("*/vocab.txt")})
    hint = did_you_mean(vocabulary, known)
    raise DataError(f"data.vocabulary '{vocabulary}' is neither a vocab.txt nor one of {', '.join(known) or 'no packaged vocabularies'}{hint}")


class WordPieceTokenizer:
    """Turns texts into ids exactly as transformers' BertTokenizerFast does, special tokens spelled out in a text included.

    Shapes:
        continues_word   [v]  bool, pieces that continue a word (##...)
        ordinary_ids     [.]  int64, every id but those of special tokens
        special_ids      [5]  int64
    """

    def __init__(self, vocabulary: str) -> None:
        """Loads a vocabulary. Raises: DataError naming the file when it lacks a special token or lists a token twice."""
        self.file = vocabulary_file(vocabulary)
        words = self.file.read_text(encoding="utf-8").split("\n")
        words = [word.rstrip("\r") for word in (words[:-1] if words and not words[-1] else words)]
        ids = {word: number for number, word in enumerate(words)}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise DataError(f"{self.file}: lacks {', '.join(missing)}; a WordPiece vocabulary has one token per line and these among them")
        if len(ids) != len(words):
            twice = next(word for number, word in enumerate(words) if ids[word] != number)
            raise DataError(f"{self.file}: token {twice!r} is listed twice; keep one line of it")
        self.vocab_size = len(words)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self.special_ids = np.array(sorted(ids[token] for token in SPECIAL_TOKENS), dtype=np.int64)
        self.ordinary_ids = np.setdiff1d(np.arange(self.vocab_size, dtype=np.int64), self.special_ids)
        self.continues_word = np.array([word.startswith("##") for word in words])
        self._tokenizer = self._build(ids)
        self._max_tokens = 0

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Encodes each text as [CLS] ... [SEP], at most `max_tokens` ids: one int64 array per text."""
        return self.encode_counting(texts, max_tokens)[0]

    def encode_counting(self, texts: Sequence[str], max_tokens: int) -> tuple[list[np.ndarray], int]:
        """Encodes as encode_batch does, and counts the ids that were cut off."""
        if max_tokens != self._max_tokens:
            self._tokenizer.enable_truncation(max_length=max_tokens)
            self._max_tokens = max_tokens
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        cut = sum(len(rest.ids) - 2 for encoding in encodings for rest in encoding.overflowing)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings], cut

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = True) -> str:
        """Joins ids back into text, word pieces merged."""
        return self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=skip_special_tokens)

    def token(self, number: int) -> str:
        """Returns the vocabulary's entry."""
        return self._tokenizer.id_to_token(int(number))

    def _build(self, ids: dict[str, int]) -> Tokenizer:
        """Assembles normaliser, pre-tokeniser, model and special tokens."""
        tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)])
        return tokenizer

    def __reduce__(self) -> tuple:
        return WordPieceTokenizer, (str(self.file),)
