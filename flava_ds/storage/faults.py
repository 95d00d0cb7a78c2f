"""The reasons why a sample cannot be used. Each is counted and logged, and the sample is replaced."""

from __future__ import annotations

from collections.abc import Collection, Mapping


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
TOO_MANY_REGIONS = "too many regions"
NO_TARGETS = "no targets"
NO_IDENTITY = "no identity"
BAD_TARGETS = "bad targets"
TOO_MANY_TARGETS = "too many targets"
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

LIMITS = {TOO_MANY_REGIONS: "max-regions", TOO_MANY_TARGETS: "max-targets"}
"""The settings of a source that make samples unusable which are as they should be."""

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
ENDING = frozenset({TRUNCATED_SHARD, BROKEN_HEADER, COMPRESSED_SHARD})
"""What leaves the rest of a shard unread, however many samples that had."""
HARMLESS = frozenset({DUPLICATE, PICKLED, PACKED, DOTTED})
"""Members that are skipped and, as far as can be known, lose no sample: they never stop a run."""


def remedy(name: str, reasons: Collection[str]) -> str:
    """Says what to do about a source's samples that are unusable for these reasons."""
    limits = [setting for reason, setting in LIMITS.items() if reason in reasons]
    options = (f"--data.sources.{name}.{setting}" for setting in (*limits, "max-skipped-share"))
    return f"{'' if limits else 'repair the shards or '}raise {' or '.join(options)}"


def lossy(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts of the reasons that lose samples."""
    return {reason: n for reason, n in counts.items() if n and reason not in HARMLESS}


def counted(counts: dict[str, int]) -> str:
    """Formats counts as 'reason n, reason n', most frequent first; 'none' when there are none."""
    present = sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {n}" for name, n in present) or "none"
