"""Counts and logs the unusable samples of a source in one process; stops the run if there are too many."""

from __future__ import annotations

import logging
from collections import Counter, deque
from typing import Any

from flava_ds.data.samples import printable
from flava_ds.errors import DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault, counted

log = logging.getLogger(__name__)

MIN_SEEN = 100
"""Samples seen before the share of unusable ones can stop the run."""
_LOGGED_FIRST, _LOGGED_EVERY = 5, 1000
_MOST_KEPT = 10_000


def where(entry: dict[str, Any]) -> str:
    """Names a sample for messages: its key, with control characters escaped, and its shard."""
    return f"'{printable(entry['key'])}' in {entry['shard']}" if entry["key"] else str(entry["shard"])


class SkipLog:
    """Counts a source's unusable samples in this process, logs some, and stops a run that loses too many."""

    def __init__(self, name: str, max_skipped_share: float) -> None:
        self.name, self.limit = name, max_skipped_share
        self.seen, self.example = 0, ""
        self.reasons: Counter[str] = Counter()
        self.silent = False
        """Whether unusable samples are counted without log lines."""
        self.epoch = 0
        self._found: deque[dict[str, Any]] = deque(maxlen=_MOST_KEPT)
        self._skipped: Counter[str] = Counter()

    def good(self) -> None:
        """Counts a usable sample."""
        self.seen += 1

    def bad(self, entry: dict[str, Any], fault: SampleFault) -> None:
        """Counts an unusable sample. Those on the skip list do not count as lost.

        `entry` holds its source, shard, key and offset.

        Raises: DataError when more than max_skipped_share of at least MIN_SEEN samples is lost.
        """
        self.seen += 1
        self.reasons[fault.reason] += 1
        self._skipped[fault.reason] += 1
        if fault.reason == faults.SKIP_LIST:
            return
        self._found.append(entry | {"reason": fault.reason, "detail": fault.detail, "epoch": self.epoch})
        self.example = f"{where(entry)}: {fault}"
        lost = self._lost()
        if not self.silent and (lost <= _LOGGED_FIRST or lost % _LOGGED_EVERY == 0):
            log.warning(
                "source '%s': skipped %s (%d of %d seen by this process)",
                self.name,
                self.example,
                lost,
                self.seen,
            )
        if self.seen >= MIN_SEEN and lost > self.limit * self.seen:
            remedy = faults.remedy(self.name, self.reasons)
            raise DataError(
                f"source '{self.name}': {self.summary()}, more than max_skipped_share {self.limit:.1%}; "
                f"last: {self.example}. {remedy[0].upper()}{remedy[1:]}"
            )

    def none_usable(self, reasons: Counter[str]) -> DataError:
        """Returns the error of a row of samples of which none can be used, for these reasons."""
        remedies = []
        if faults.SKIP_LIST in reasons:
            option = f"--data.sources.{self.name}.skip-list"
            remedies.append(f"the skip list leaves next to nothing: take entries out of {option}")
        if reasons.keys() - {faults.SKIP_LIST}:
            remedies.append("repair the shards")
        return DataError(
            f"source '{self.name}': {reasons.total()} samples in a row cannot be used: {counted(reasons)}; "
            f"{', and '.join(remedies)}"
        )

    def take(self) -> tuple[dict[str, Any], ...]:
        """Returns and clears the unusable samples since the last call, at most the latest _MOST_KEPT."""
        found = tuple(self._found)
        self._found.clear()
        return found

    def take_counts(self) -> dict[str, int]:
        """Returns and clears the counts by reason since the last call, including the skip list's."""
        counts, self._skipped = dict(self._skipped), Counter()
        return counts

    def summary(self) -> str:
        """Formats the share of lost samples and the count of each reason."""
        lost = self._lost()
        return (
            f"{lost} of {self.seen} samples ({lost / max(1, self.seen):.1%}) are unusable: "
            f"{counted(self.reasons)}"
        )

    def _lost(self) -> int:
        """Returns the number of samples that should be usable but are not."""
        return sum(self.reasons.values()) - self.reasons[faults.SKIP_LIST]
