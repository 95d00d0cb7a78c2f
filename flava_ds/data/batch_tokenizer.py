"""What every tokenizer here does: encode a batch of texts, cut them, and count what was cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from flava_ds.errors import ConfigError


class BatchTokenizer:
    """Hugging Face's Rust tokenizer over whole batches, with one special token before each text and one
    behind it.
    """

    file: Path
    """Where its vocabulary comes from."""
    vocab_size: int
    cls_id: int
    """Of the first token of a text."""
    sep_id: int
    """Of the last token of a text."""
    pad_id: int

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = 0

    def fitting(self, most: int) -> Self:
        """Returns itself where a model of `most` entries has a row for every id.

        Raises: ConfigError.
        """
        if self.vocab_size > most:
            raise ConfigError(
                f"model.text.vocab_size {most} is smaller than the {self.vocab_size} entries of "
                f"{self.file}; raise it"
            )
        return self

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Encodes each text with its first and last special token, at most `max_tokens` ids: one int64 array
        per text.

        What is too long loses its end, but never the special token there.
        """
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
        return self._tokenizer.decode(
            [int(number) for number in ids], skip_special_tokens=skip_special_tokens
        )

    def token(self, number: int) -> str:
        """Returns the vocabulary's entry."""
        return self._tokenizer.id_to_token(int(number))
