"""Trains the demo's small uncased WordPiece vocabulary.

`tokenizers` splits the words like BERT, but the merges are learned here: its trainer breaks ties in the order
of a hash map, so two runs give two vocabularies.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from tokenizers import normalizers, pre_tokenizers

from flava_ds.data.tokenizer import SPECIAL_TOKENS

VOCABULARY_SIZE = 4096
ALPHABET_SIZE = 120  # rarer characters become [UNK]
CONTINUATION = "##"

Pair = tuple[str, str]


def train_vocabulary(texts: Iterable[str]) -> list[str]:
    """Merges the most frequent pairs until the vocabulary is full. Returns tokens in the order of their ids.

    Ties are broken alphabetically, so the same texts give the same vocabulary.
    """
    words = _count_words(texts)
    characters = Counter(character for word in words for character in word)
    alphabet = {
        character
        for character, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:ALPHABET_SIZE]
    }
    spelled = [
        ([word[0], *(CONTINUATION + character for character in word[1:])], count)
        for word, count in sorted(words.items())
        if alphabet.issuperset(word)
    ]
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *sorted({piece for pieces, _ in spelled for piece in pieces})))
    for merged in _merges(spelled):
        if len(tokens) == VOCABULARY_SIZE:
            break
        tokens[merged] = None
    return list(tokens)


def _count_words(texts: Iterable[str]) -> Counter[str]:
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return words


def _merges(spelled: list[tuple[list[str], int]]) -> Iterable[str]:
    """Yields merged pieces in the order in which byte-pair encoding learns them; modifies `spelled`."""
    counts: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = defaultdict(set)
    for index, (pieces, count) in enumerate(spelled):
        for pair in pairwise(pieces):
            counts[pair] += count
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap:
        negative, pair = heapq.heappop(heap)
        if -negative != counts[pair] or not negative:
            continue  # the count changed after this entry was pushed; a newer entry is in the heap
        merged = pair[0] + pair[1].removeprefix(CONTINUATION)
        touched: set[Pair] = set()
        for index in places.pop(pair):
            pieces, count = spelled[index]
            for old in pairwise(pieces):
                counts[old] -= count
                touched.add(old)
            pieces[:] = _apply(pieces, pair, merged)
            for new in pairwise(pieces):
                counts[new] += count
                places[new].add(index)
                touched.add(new)
        for changed in touched:
            heapq.heappush(heap, (-counts[changed], changed))
        yield merged


def _apply(pieces: list[str], pair: Pair, merged: str) -> list[str]:
    """Replaces the pair by its merged piece from left to right."""
    result: list[str] = []
    for piece in pieces:
        # A piece just merged cannot be the left half of the same pair: merged is longer than pair[0].
        if result and (result[-1], piece) == pair:
            result[-1] = merged
        else:
            result.append(piece)
    return result
