"""A log record as one line for the terminal, printed by the trainer and by the demo that follows it."""

from __future__ import annotations

import sys
from typing import Any

SLOW, NOTICEABLE_S = 1.2, 0.02
"""A rank is reported as slow above this multiple of the median rank's time and this many extra seconds per
step; processes always differ by milliseconds.
"""


def lags(seconds: float, median: float) -> bool:
    """Returns True if a rank is noticeably slower per step than the median rank."""
    return seconds > SLOW * median and seconds - median > NOTICEABLE_S


def console_line(record: dict[str, Any], total_steps: int) -> str:
    """Formats one record: losses, rates, memory, source shares, time left, slow ranks, skipped samples."""
    shares = {name: value for name, value in under(record, "source_share/") if value}
    parts = [
        f"step {record['step'] + 1}/{total_steps}",
        " ".join(f"{name} {_number(value)}" for name, value in under(record, "loss/")),
        f"{record['samples_per_second']:.1f} samples/s",
        f"data wait {100 * record['data_wait']:.0f}%",
        f"{flop_rate(record['flops_per_second'])} = {100 * record['mfu']:.0f}% of GEMM rate",
        f"{record['peak_memory_gib']:.2f} GiB",
        " ".join(f"{name} {100 * value:.0f}%" for name, value in shares.items()) if len(shares) > 1 else "",
        f"ETA {duration(record['eta_s'])}",
        slow_rank(record),
        skipped(record),
    ]
    return " | ".join(part for part in parts if part)


def _number(value: float | None) -> str:
    """Formats a loss; a record has None for one that is not finite."""
    return "not finite" if value is None else f"{value:.3f}"


def under(record: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    """Returns the fields whose keys start with `prefix`, without the prefix."""
    return [(key.removeprefix(prefix), value) for key, value in record.items() if key.startswith(prefix)]


def slow_rank(record: dict[str, Any]) -> str:
    """Names the slowest rank if it is noticeably slow; else returns an empty string."""
    slowest, median = record.get("rank_seconds/slowest"), record.get("rank_seconds/median")
    if not slowest or not median or not lags(slowest, median):
        return ""
    return (
        f"slow: rank {record['slowest_rank']} on {record['slowest_host']}, {slowest / median:.1f} x the "
        f"median, in {record['slowest_in']}"
    )


def skipped(record: dict[str, Any]) -> str:
    """Lists skipped samples by source and reason; returns an empty string if there are none."""
    by_source: dict[str, list[str]] = {}
    for name, count in under(record, "skipped_samples/"):
        source, reason = name.rsplit("/", 1)
        by_source.setdefault(source, []).append(f"{reason} {count}")
    return (
        "skipped: " + "; ".join(f"{source} {', '.join(reasons)}" for source, reasons in by_source.items())
        if by_source
        else ""
    )


def flop_rate(flops_per_second: float) -> str:
    """Formats FLOP/s with a prefix that keeps the number short."""
    return (
        f"{flops_per_second / 1e12:.3g} TFLOP/s"
        if flops_per_second >= 1e12
        else f"{flops_per_second / 1e9:.3g} GFLOP/s"
    )


def duration(seconds: float) -> str:
    """Formats a duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def show(text: str, *, last: bool) -> None:
    """Prints a line; on a terminal it replaces the previous one."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)
    else:
        print(text, flush=True)
