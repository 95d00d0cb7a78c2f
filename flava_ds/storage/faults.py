"""The reasons why a sample cannot be used. Each is counted and logged, and the sample is replaced."""

from __future__ import annotations

from collections.abc import Mapping


class SampleFault(Exception):
    """An unusable sample: `reason` is one of the words below, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


TRUNCATED = "truncated"
UNDECODABLE = "undecodable"
TOO_MANY_PIXELS = "too many pixels"
TOO_MANY_BYTES = "too many bytes"
NO_IMAGE = "no image"
MISSING_CAPTION = "missing caption"
EMPTY_CAPTION = "empty caption"
NOT_UTF8 = "not utf-8"
BAD_CODES = "bad image codes"
NO_REGIONS = "no regions"
BAD_REGIONS = "bad regions"
NO_TARGETS = "no targets"
NO_IDENTITY = "no identity"
BAD_TARGETS = "bad targets"
SKIP_LIST = "skip list"
"""The only intended reason: it never stops a run."""

TRUNCATED_SHARD = "truncated shard"
BROKEN_HEADER = "broken header"
COMPRESSED_SHARD = "compressed shard"
ZEROS = "zeros inside a shard"
TOO_LARGE = "member too large"
UNSAFE_NAME = "unsafe name"
DUPLICATE = "duplicate member"
PICKLED = "pickled member"
PACKED = "packed member"
DOTTED = "suffix with a dot"

OF_A_SHARD = (
    TRUNCATED_SHARD,
    BROKEN_HEADER,
    COMPRESSED_SHARD,
    ZEROS,
    TOO_LARGE,
    UNSAFE_NAME,
    DUPLICATE,
    PICKLED,
    PACKED,
    DOTTED,
)
"""Found while a shard is indexed; counted per shard or per member when a run starts."""
HARMLESS = frozenset({DUPLICATE, PICKLED, PACKED, DOTTED})
"""Members that are skipped and, as far as can be known, lose no sample: they never stop a run."""


def lossy(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts of the reasons that lose samples."""
    return {reason: n for reason, n in counts.items() if n and reason not in HARMLESS}
