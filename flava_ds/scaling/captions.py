"""Lengths of texts: a histogram of tokens, from the published averages, a JSON file or shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config import Config
from flava_ds.errors import ConfigError, DataError, did_you_mean
from flava_ds.scaling import kept
from flava_ds.scaling.facts import Facts, Run
from flava_ds.storage.files import stamp_of
from flava_ds.storage.shards import list_shards

PMD_WORDS = (
    (0.9, 12.4), (1.0, 12.1), (1.9, 13.8), (3.1, 10.3), (5.4, 5.1), (4.8, 12.8), (11.0, 17.3), (11.6, 9.5),
    (30.3, 12.7),
)  # fmt: skip
"""PMD's corpora: million pairs, and mean words of a caption. Source: FLAVA, Table 2."""
TOKENS_PER_WORD = 1.25
"""WordPiece tokens of an English caption's word; with [CLS] and [SEP], PMD's 12.1 words make 17 tokens."""
SAMPLED = 2000
"""Captions that are read of shards, at even distances."""
LONGEST = 2**20


@dataclass(frozen=True)
class Lengths:
    """A histogram of text lengths in tokens, special tokens included."""

    counts: Mapping[int, float]
    origin: str
    """Where it comes from, for people."""

    def __post_init__(self) -> None:
        if not self.counts or sum(self.counts.values()) <= 0:
            raise DataError(f"{self.origin}: the histogram of caption lengths is empty; give counts above 0")

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        return self._moment(1)

    @property
    def deviation(self) -> float:
        """Standard deviation of the length in tokens."""
        return max(0.0, self._moment(2) - self.mean**2) ** 0.5

    def _moment(self, power: int) -> float:
        total = sum(self.counts.values())
        return sum(length**power * count for length, count in self.counts.items()) / total

    def cut(self, longest: int) -> Lengths:
        """Returns the lengths after the collator has cut texts to `longest` tokens."""
        counts: Counter[int] = Counter()
        for length, count in self.counts.items():
            counts[min(length, longest)] += count  # type: ignore[assignment]
        return replace(self, counts=dict(counts))

    def quantiles(self, count: int) -> np.ndarray:
        """Returns `count` lengths that are spread as the histogram is: [count] int64, shuffled."""
        lengths = np.array(sorted(self.counts), dtype=np.int64)
        shares = np.cumsum([self.counts[length] for length in lengths.tolist()])
        places = (np.arange(count) + 0.5) / count * shares[-1]
        chosen = lengths[np.searchsorted(shares, places)]
        return np.random.default_rng(0).permutation(chosen)


def published(max_tokens: int) -> Lengths:
    """Returns PMD's captions by their corpora's mean lengths; the spread within a corpus is not published."""
    counts = {round(words * TOKENS_PER_WORD) + 2: 0.0 for _, words in PMD_WORDS}
    for pairs, words in PMD_WORDS:
        counts[round(words * TOKENS_PER_WORD) + 2] += pairs
    return Lengths(counts, "published means of PMD's nine corpora").cut(max_tokens)


def full(max_tokens: int) -> Lengths:
    """Returns texts that all fill the model's window, as passages of a corpus do."""
    return Lengths({max_tokens: 1.0}, f"every text of {max_tokens} tokens")


def lengths_of(run: Config | Facts | Run, given: str | None) -> dict[str, Lengths]:
    """Returns the text lengths of every source with text, by its name.

    `given` is None, a .json file or the shards of pairs. JSON holds {length: count}, for all pair sources, or
    {source: {length: count}}.

    Raises: DataError naming the file and the entry; ConfigError for a source that the run does not have.
    """
    drawn = (run.facts() if isinstance(run, Run) else run).drawn_sources
    sources = {name: source for name, source in drawn.items() if source.kind != "image"}
    found = {
        name: (published if source.kind == "pair" else full)(source.max_tokens)
        for name, source in sources.items()
    }
    if given is None:
        return found
    pairs = [name for name, source in sources.items() if source.kind == "pair"]
    if given.endswith(".json"):
        named = read_json(Path(given), pairs)
    elif isinstance(run, Facts):
        raise TypeError("the texts of shards are read by a configuration")
    else:
        named = {name: shard_lengths(run, name, given) for name in pairs}
    for name, lengths in named.items():
        if name not in sources:
            raise ConfigError(
                f"{given}: the run has no source '{name}' with text{did_you_mean(name, sources)}; it has "
                f"{', '.join(sources)}"
            )
        found[name] = lengths.cut(sources[name].max_tokens)
    return found


def shard_lengths(run: Config | Run, name: str, shards: str) -> Lengths:
    """Returns the lengths of captions in shards, kept ones of before if they are local and unchanged, and no
    code of the user's has a say.

    Raises: DataError.
    """
    if not isinstance(run, Run):
        return read_shards(run, name, shards)
    files = list_shards(shards, name)
    if run.has_own_code or not all(isinstance(file, Path) for file in files):
        return read_shards(run.config(), name, shards)

    def key() -> list[Any]:
        stamps = [[str(Path(str(file)).resolve()), *stamp_of(file)] for file in files]
        return [run.work_key(), name, shards, stamps]

    return kept.kept_or_new("captions", key, Lengths, lambda: read_shards(run.config(), name, shards))


def read_json(path: Path, pairs: Iterable[str]) -> dict[str, Lengths]:
    """Reads histograms by source. Raises: DataError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; --captions takes a histogram or shards") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise DataError(f'{path}: the histogram of caption lengths is empty; write {{"17": 1200, ...}}')
    if all(isinstance(value, dict) for value in found.values()):
        return {name: Lengths(_counts(path, value), str(path)) for name, value in found.items()}
    counts = _counts(path, found)
    return {name: Lengths(counts, str(path)) for name in pairs}


def _counts(path: Path, found: Mapping[str, Any]) -> dict[int, float]:
    """Checks the entries of one histogram."""
    counts: dict[int, float] = {}
    for length, count in found.items():
        good = str(length).isdecimal() and 0 < int(length) <= LONGEST
        if not good or isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count < 1e18:
            raise DataError(
                f"{path}: entry {length!r:.40}: {count!r:.40} is no length in tokens with its count; write "
                'e.g. "17": 1200'
            )
        counts[int(length)] = counts.get(int(length), 0.0) + count
    return counts


def read_shards(config: Config, name: str, shards: str) -> Lengths:
    """Tokenises captions of shards at even distances, as source `name` would. Raises: DataError."""
    from flava_ds.data.indexed import IndexedShards
    from flava_ds.storage.faults import SampleFault

    source = replace(config.data.sources[name], shards=shards, kind="text")
    reader = IndexedShards(config.with_sources({name: source}), name)
    tokenizer = config.model.load_tokenizer(config)
    texts = []
    for index in np.unique(np.linspace(0, len(reader) - 1, min(SAMPLED, len(reader))).astype(int)).tolist():
        try:
            texts.append(reader.decoder(reader.read(index), reader.table.key(index), index, index).text)
        except SampleFault:  # training would skip it, too
            continue
    ids, _ = tokenizer.encode_counting([text for text in texts if text], source.max_tokens)
    return Lengths(Counter(len(each) for each in ids), f"{len(ids)} captions of {shards}")
