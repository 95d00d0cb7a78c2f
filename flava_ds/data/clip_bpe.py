"""CLIP's byte-pair tokenizer: lower-case text, split into words, digits and punctuation, 48,894 merges.

The merge rules come with the package open_clip_torch, which is not imported.

Source: Radford et al. 2021, section 2.4, and the tokenizer of their code.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from flava_ds.config.plain_files import loads, read_small
from flava_ds.data import tokenizer_files
from flava_ds.data.batch_tokenizer import BatchTokenizer
from flava_ds.errors import DataError

NAME = "clip_bpe"
FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES_FILE, IDS_FILE = "merges.txt", "vocab.json"
"""Of transformers' older tokenizers; the second lies beside the first, and has the ids of the entries."""
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
MERGES = 49_152 - 256 - 2
"""Number of rules used from the file, after its first line."""
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def is_meant(vocabulary: str) -> bool:
    """Returns whether data.vocabulary selects CLIP's byte pairs: by name, or by a path to the rules.

    The rules are open_clip's .txt.gz, or the merges.txt or tokenizer.json that transformers' tokenizer saves.

    Raises: DataError for a tokenizer.json that no tokenizer here can read.
    """
    if tokenizer_files.is_meant(vocabulary):
        return tokenizer_files.read(Path(vocabulary).expanduser()).kind == "BPE"
    return vocabulary == NAME or vocabulary.endswith(".txt.gz") or Path(vocabulary).name == MERGES_FILE


def merges_file(vocabulary: str = NAME) -> Path:
    """Finds the merge rules: at the given path, or in the installed open_clip_torch.

    Raises: DataError that names the extra to install.
    """
    if vocabulary != NAME:
        if (path := Path(vocabulary).expanduser()).is_file():
            return path
        raise DataError(f"data.vocabulary '{vocabulary}': no such file; give the path of {FILE}, or '{NAME}'")
    found = importlib.util.find_spec("open_clip")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise DataError(
        f"data.vocabulary '{NAME}' needs {FILE}, which comes with open_clip_torch and is not installed; "
        "install the extra: pip install 'flava_ds[clip]', or give the path of that file"
    )


def read_merges(file: Path) -> list[tuple[str, str]]:
    """Reads the merge rules in order.

    Raises: DataError that names the file when it is not the expected one.
    """
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: not readable as text ({error}); take {FILE} of open_clip_torch") from error
    lines = text.split("\n")
    rules = [line.split() for line in lines[1 : 1 + MERGES]]
    if len(rules) != MERGES or any(len(rule) != 2 for rule in rules):
        raise DataError(f"{file}: expected {MERGES} rules of two pieces each; take {FILE} of open_clip_torch")
    return [(first, second) for first, second in rules]


def read_entries(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the ids of all entries and the merge rules. The ids are those of a tokenizer.json, or of a
    vocab.json beside a merges.txt; rules alone tell the published ones.

    Raises: DataError that names the file when it is not the expected one.
    """
    if file.name == tokenizer_files.NAME:
        found = tokenizer_files.read(file)
        ids, merges = found.ids, found.merges
    else:
        merges, letters = read_merges(file), byte_symbols()
        ends = [f"{letter}</w>" for letter in letters]
        entries = [*letters, *ends, *(a + b for a, b in merges), *SPECIAL_TOKENS]
        ids = {entry: number for number, entry in enumerate(entries)}
        beside = file.with_name(IDS_FILE)
        if file.name == MERGES_FILE and beside.is_file():
            try:
                ids = tokenizer_files.in_order(loads(read_small(beside)), beside)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{beside}: not readable ({error}); copy the model's folder again") from error
            tokenizer_files.check_merges(merges, ids, beside)
            file = beside
    if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise DataError(f"{file}: lacks {', '.join(missing)}, with which CLIP's texts begin and end")
    return ids, merges


def byte_symbols() -> list[str]:
    """Returns the printable symbol for each byte, in the order of their ids: printable bytes first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]


class ClipTokenizer(BatchTokenizer):
    """Encodes texts like CLIP: resolves HTML entities, lower-cases, adds <|startoftext|> and <|endoftext|>.

    The published code also repairs wrongly decoded text (ftfy); do that when preparing the data.
    """

    def __init__(self, vocabulary: str = NAME) -> None:
        """Loads the rules. Raises: DataError."""
        self.file = merges_file(vocabulary)
        self.entries, self.merges = read_entries(self.file)
        self.vocab_size = len(self.entries)
        self.cls_id, self.sep_id = (self.entries[token] for token in SPECIAL_TOKENS)
        self.pad_id = self.sep_id  # as in transformers; packed batches need no padding
        super().__init__(self._build())
        tokenizer_files.compare(self.file, self._tokenizer)

    def encode_counting(self, texts: Sequence[str], max_tokens: int) -> tuple[list[np.ndarray], int]:
        return super().encode_counting([resolved(text) for text in texts], max_tokens)

    def _build(self) -> Tokenizer:
        """Assembles the normaliser, pre-tokeniser, model and special tokens."""
        end = SPECIAL_TOKENS[1]
        tokenizer = Tokenizer(BPE(self.entries, self.merges, unk_token=end, end_of_word_suffix="</w>"))
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        ends = [(token, self.entries[token]) for token in SPECIAL_TOKENS]
        template = f"{SPECIAL_TOKENS[0]} $A {end}"
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
        return tokenizer

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = True) -> str:
        return super().decode(ids, skip_special_tokens=skip_special_tokens).replace("</w>", " ").strip()

    def __reduce__(self) -> tuple:
        return ClipTokenizer, (str(self.file),)


def resolved(text: str) -> str:
    """Resolves HTML entities, including the doubly escaped ones (&amp;amp;) of web captions."""
    return html.unescape(html.unescape(text)) if "&" in text else text
