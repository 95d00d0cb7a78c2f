"""tokenizer.json, in which Hugging Face's tokenizers keep a vocabulary and how they read texts with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import DataError

NAME = "tokenizer.json"
KINDS: dict[str, dict[str, str | int]] = {
    "WordPiece": {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    "BPE": {"unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>"},
}
"""The models that tokenizers here can be, BERT's and CLIP's, and their settings."""
TEXTS = (
    "A Red  CAT, unbelievable!\tplaying 42.5 don't",
    "naïve Ünïcödé CAFÉ, Éa e\u0301 ß",
    "日本語 and 한국어, emoji 😀",
    "x" * 101,
    "",
)
"""What a tokenizer has to read as the file's own does."""


@dataclass(frozen=True)
class TokenizerFile:
    """A vocabulary, and how texts are read with it."""

    kind: Literal["WordPiece", "BPE"]
    ids: dict[str, int]
    """Entries in the order of their ids, which are 0, 1, 2, ..."""
    merges: list[tuple[str, str]]
    """Of byte pairs, in order; empty for WordPiece."""
    lowercase: bool


def is_meant(vocabulary: str) -> bool:
    """Returns whether data.vocabulary is the path of such a file that is there."""
    return Path(vocabulary).name == NAME and Path(vocabulary).expanduser().is_file()


def read(file: Path) -> TokenizerFile:
    """Reads a tokenizer of WordPiece, or of CLIP's byte pairs.

    Raises: DataError when it is damaged, or of a kind that no tokenizer here is.
    """
    try:
        found: Any = loads(read_small(file))
        model = found["model"]
        kind = model.get("type", "WordPiece" if "continuing_subword_prefix" in model else "BPE")
        if kind not in KINDS:
            raise DataError(
                f"{file}: its model is '{kind}', and tokenizers here are {' or '.join(KINDS)} (CLIP's); no "
                "model here was trained with such a vocabulary"
            )
        for name, value in KINDS[kind].items():
            if model.get(name) != value:
                raise DataError(
                    f"{file}: {name} of its {kind} is {model.get(name)!r}, but tokenizers here have "
                    f"{value!r}: BERT's and CLIP's alone are read"
                )
        ids = in_order(model["vocab"], file)
        added = {own["content"]: own["id"] for own in found.get("added_tokens") or ()}
        if more := [word for word, number in added.items() if ids.get(word) != number]:
            raise DataError(
                f"{file}: adds {more[0]!r} to its vocabulary, which tokenizers here cannot; take the file of "
                "a model without added tokens"
            )
        merges = [tuple(own.split(" ") if isinstance(own, str) else own) for own in model.get("merges", ())]
        check_merges(merges, ids, file)
        lowercase = bool((found.get("normalizer") or {}).get("lowercase", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: not readable as a tokenizer ({type(error).__name__}: {error}); copy the model's folder "
            "again"
        ) from error
    return TokenizerFile(kind, ids, merges, lowercase)


def in_order(vocabulary: Mapping[str, Any], file: Path) -> dict[str, int]:
    """Returns a vocabulary in the order of its ids. Raises: DataError when these are not 0, 1, 2, ..."""
    ids = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    if not ids or [*ids.values()] != [*range(len(ids))]:
        raise DataError(f"{file}: ids of its vocabulary are not 0 .. {len(ids) - 1}; copy the file again")
    return ids


def check_merges(merges: Sequence[Sequence[str]], ids: Mapping[str, int], file: Path) -> None:
    """Raises DataError when a rule does not join two entries into a third."""
    for rule in merges:
        if len(rule) != 2 or any(piece not in ids for piece in (*rule, "".join(rule))):
            raise DataError(
                f"{file}: the rule {' '.join(map(str, rule))!r} does not join two entries of the vocabulary "
                "into a third; copy the file again"
            )


def compare(file: Path, ours: Tokenizer) -> None:
    """Compares how a tokenizer.json's own tokenizer and ours read a few texts; other files have none.

    Raises: DataError when they differ.
    """
    if file.name != NAME:
        return
    try:
        theirs = Tokenizer.from_str(read_small(file).decode("utf-8"))
    except Exception as error:  # of tokenizers, which has no class for them
        raise DataError(
            f"{file}: not readable as a tokenizer ({error}); copy the model's folder again"
        ) from error
    theirs.no_padding()
    theirs.no_truncation()
    for text in TEXTS:
        if ours.encode(text).ids != theirs.encode(text).ids:
            raise DataError(
                f"{file}: reads {text[:20]!r} in another way than BERT's and CLIP's tokenizers would with "
                "its vocabulary; no other tokenizer can be read here"
            )
