"""The base of all tokenizers: encodes batches of texts, truncates them, and counts the tokens cut."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from flava_ds.errors import ConfigError


class BatchTokenizer:
    """Hugging Face's Rust tokenizer for whole batches; adds one special token before and after each text."""

    file: Path
    """The file with the vocabulary, for messages."""
    vocab_size: int
    cls_id: int
    """Id of the first token of every text."""
    sep_id: int
    """Id of the last token of every text."""
    pad_id: int

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = 0

    def fitting(self, most: int) -> Self:
        """Returns itself if a model with `most` entries has a row for every id.

        Raises: ConfigError when the model's vocabulary is too small.
        """
        if self.vocab_size > most:
            raise ConfigError(
                f"model.text.vocab_size {most} is smaller than the {self.vocab_size} entries of "
                f"{self.file}; raise it, or name the model's own vocabulary with --data.vocabulary"
            )
        return self

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Encodes each text with its special tokens into at most `max_tokens` ids: one int64 array per text.

        Truncation removes the end of a text, but keeps the special token there.
        """
        return self.encode_counting(texts, max_tokens)[0]

    def encode_counting(self, texts: Sequence[str], max_tokens: int) -> tuple[list[np.ndarray], int]:
        """Encodes like encode_batch, and counts the ids that were cut."""
        if max_tokens != self._max_tokens:
            self._tokenizer.enable_truncation(max_length=max_tokens)
            self._max_tokens = max_tokens
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        cut = sum(len(rest.ids) - 2 for encoding in encodings for rest in encoding.overflowing)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings], cut

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = True) -> str:
        """Decodes ids into text, merging word pieces."""
        return self._tokenizer.decode(
            [int(number) for number in ids], skip_special_tokens=skip_special_tokens
        )

    def fingerprint(self) -> str:
        """Hashes the entries in their order: 16 hexadecimal digits."""
        entries = "\n".join(str(self.token(number)) for number in range(self.vocab_size))
        return hashlib.sha256(entries.encode()).hexdigest()[:16]

    def token(self, number: int) -> str:
        """Returns the vocabulary entry of an id."""
        return str(self._tokenizer.id_to_token(int(number)))
