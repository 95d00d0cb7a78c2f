"""Finds vocabularies by name, and implements BERT's uncased WordPiece with Hugging Face's Rust tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from flava_ds.config import did_you_mean
from flava_ds.data import clip_bpe, tokenizer_files
from flava_ds.data.batch_tokenizer import BatchTokenizer
from flava_ds.errors import DataError

VOCABULARY_FOLDER = Path(__file__).parent / "vocab"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(vocabulary: str) -> BatchTokenizer:
    """Loads the tokenizer of a vocabulary: CLIP's byte pairs, or WordPiece. Raises: DataError."""
    if clip_bpe.is_meant(vocabulary):
        return clip_bpe.ClipTokenizer(vocabulary)
    return WordPieceTokenizer(vocabulary)


def vocabulary_file(vocabulary: str) -> Path:
    """Finds a vocabulary by its path or name.

    A name is "clip_bpe" or a vocabulary under flava_ds/data/vocab (NAME.txt or NAME/vocab.txt).

    Raises: DataError with the known names.
    """
    if clip_bpe.is_meant(vocabulary):
        return clip_bpe.merges_file(vocabulary)
    for candidate in (
        Path(vocabulary).expanduser(),
        VOCABULARY_FOLDER / f"{vocabulary}.txt",
        VOCABULARY_FOLDER / vocabulary / "vocab.txt",
    ):
        if candidate.is_file():
            return candidate
    names = {path.stem for path in VOCABULARY_FOLDER.glob("*.txt")} | {
        path.parent.name for path in VOCABULARY_FOLDER.glob("*/vocab.txt")
    }
    known = sorted(names | {clip_bpe.NAME})
    hint = did_you_mean(vocabulary, known)
    raise DataError(
        f"data.vocabulary '{vocabulary}' is neither a vocab.txt nor one of {', '.join(known)}{hint}"
    )


def read_words(file: Path) -> tuple[list[str], bool | None]:
    """Reads the words of a vocab.txt or a tokenizer.json in the order of their ids, and whether texts are
    read in lower case, if the file tells.

    Raises: DataError when it is no text.
    """
    if file.name == tokenizer_files.NAME:
        found = tokenizer_files.read(file)
        return list(found.ids), found.lowercase
    try:
        words = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: byte {error.start} is not UTF-8; name a WordPiece vocab.txt, one token a line"
        ) from error
    return [word.rstrip("\r") for word in (words[:-1] if words and not words[-1] else words)], None


class WordPieceTokenizer(BatchTokenizer):
    """Encodes exactly like transformers' BertTokenizerFast, even special tokens spelled out in a text. A
    vocabulary with capitals is a cased one, whose texts keep their case and accents; a tokenizer.json tells.

    Shapes:
        continues_word   [v]  bool, pieces that continue a word (##...)
        ordinary_ids     [.]  int64, all ids except those of special tokens
        special_ids      [5]  int64
    """

    def __init__(self, vocabulary: str) -> None:
        """Loads a vocabulary.

        Raises: DataError when it is no text, lacks a special token or lists a token twice.
        """
        if clip_bpe.is_meant(vocabulary):
            raise DataError(
                f"data.vocabulary '{vocabulary}' holds CLIP's byte pairs, but WordPiece is needed here; "
                "name a vocab.txt"
            )
        self.file = vocabulary_file(vocabulary)
        words, lowercase = read_words(self.file)
        ids = {word: number for number, word in enumerate(words)}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise DataError(
                f"{self.file}: lacks {', '.join(missing)}; a WordPiece vocabulary has one token per line, "
                "including these"
            )
        if len(ids) != len(words):
            twice = next(word for number, word in enumerate(words) if ids[word] != number)
            raise DataError(f"{self.file}: token {twice!r} is listed twice; keep one line of it")
        self.vocab_size = len(words)
        named = {word for word in words if word.startswith("[") and word.endswith("]")}
        found = all(word == word.lower() for word in ids.keys() - named)
        self.lowercase = found if lowercase is None else lowercase
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            ids[token] for token in SPECIAL_TOKENS
        )
        self.special_ids = np.array(sorted(ids[token] for token in SPECIAL_TOKENS), dtype=np.int64)
        self.ordinary_ids = np.setdiff1d(np.arange(self.vocab_size, dtype=np.int64), self.special_ids)
        self.continues_word = np.array([word.startswith("##") for word in words])
        super().__init__(self._build(ids))
        tokenizer_files.compare(self.file, self._tokenizer)

    def _build(self, ids: dict[str, int]) -> Tokenizer:
        """Assembles the normaliser, pre-tokeniser, model and special tokens."""
        tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)]
        )
        return tokenizer

    def __reduce__(self) -> tuple:
        return WordPieceTokenizer, (str(self.file),)
