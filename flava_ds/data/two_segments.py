"""Texts of two segments as token ids, [CLS] first [SEP] second [SEP], and where a text can be cut."""

from __future__ import annotations

import re

import numpy as np

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)")


def sentences(text: str) -> tuple[str, ...]:
    """Splits a text after full stops, exclamation marks and question marks that precede a space."""
    return tuple(part for part in _SENTENCE_END.split(text) if part)


def joined(first: np.ndarray, second: np.ndarray, most: int) -> np.ndarray:
    """Joins two texts, both with their special tokens, truncating the longer one first.

    Shapes:
        first, second  [s], [t]  int64
        returns        at most `most` ids
    """
    start, end, a, b = first[:1], first[-1:], first[1:-1], second[1:-1]
    room = max(0, most - 3)
    if len(a) + len(b) > room:
        if min(len(a), len(b)) <= room // 2:
            a, b = (a[: room - len(b)], b) if len(a) > len(b) else (a, b[: room - len(a)])
        else:
            a, b = a[: room - room // 2], b[: room // 2]
    return np.concatenate([start, a, end, b, end])


def segments(ids: np.ndarray, lengths: np.ndarray, sep_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the segment of each packed token, and the number of segments of each text.

    Shapes:
        ids      [T]       int64
        lengths  [b]       tokens of each text
        returns  [T], [b]  int64
    """
    is_end, last = ids == sep_id, np.cumsum(lengths) - 1
    ends = np.cumsum(is_end)
    of_text = np.diff(ends[last], prepend=0)
    return ends - is_end - np.repeat(ends[last] - of_text, lengths), of_text
