"""The benchmark's rows: a CSV file to append to, and lines for the terminal."""

from __future__ import annotations

import csv
import dataclasses
import statistics
from pathlib import Path

from flava_kernels.bench.machine import Machine
from flava_kernels.bench.measure import Measurement
from flava_kernels.bench.workload import Cost, Workload


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a peer, our implementation (empty for others), and the dtype."""

    peer: str
    implementation: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One pass of one implementation on one workload; no numbers if `note` says why.

    On our own rows with numbers, the note names the errors that are beyond the operator's limits.
    """

    op: str
    workload: str
    peer: str
    implementation: str
    """For our own operators: "triton" or "torch", the reference. Empty for peers."""
    direction: str
    dtype: str
    device: str
    threads: int
    median_us: float | None
    p10_us: float | None
    p90_us: float | None
    rounds: int
    peak_mib: float | None
    """Forward rows: of the forward pass. Backward rows: of both passes, as are the shares, since some
    implementations compute gradients in the forward pass.
    """
    share_of_copy: float | None
    """Minimum bytes over time, as a share of the measured copy bandwidth."""
    share_of_gemm: float | None
    """Operations over time, as a share of the measured matrix product rate."""
    error: float | None
    """Largest relative error against fp64 over results and gradients."""
    method: str
    note: str
    torch: str
    triton: str
    commit: str
    host_us: float | None = None
    """On a GPU: median time in which an eager call of this pass returns, while the device works."""


def measured(path: Path, device: str, dtype: str, commit: str) -> dict[tuple[str, str], str]:
    """Returns the (operator, workload) pairs of a file that were measured at a commit on a device.

    With each, the note on our own rows.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (line["op"], line["workload"]): line["note"]
            for line in csv.DictReader(file)
            if (line["device"], line["dtype"], line["commit"]) == (device, dtype, commit)
            and line["implementation"]
        }


NUMBERS = ("median_us", "p10_us", "p90_us", "peak_mib", "share_of_copy", "share_of_gemm", "error", "host_us")


def rows_of(
    workload: Workload,
    subject: Subject,
    machine: Machine,
    cost: Cost,
    found: Measurement | None,
    error: float | None,
    note: str,
) -> tuple[Row, Row]:
    """Returns the rows of the forward and backward passes."""
    if found is None:
        forward_row, backward_row = (
            _row(workload, subject, machine, None, error, note, direction, [], None, None, None)
            for direction in ("forward", "backward")
        )
        return forward_row, backward_row
    forward = statistics.median(found.forward)
    both = forward + statistics.median(found.backward)
    copied = (
        cost.forward_bytes / machine.copy_bandwidth,
        (cost.forward_bytes + cost.backward_bytes) / machine.copy_bandwidth,
    )
    multiplied = (
        cost.forward_flops / machine.gemm_rate,
        (cost.forward_flops + cost.backward_flops) / machine.gemm_rate,
    )
    passes = (
        ("forward", found.forward, found.forward_peak, copied[0] / forward, multiplied[0] / forward),
        ("backward", found.backward, found.peak, copied[1] / both, multiplied[1] / both),
    )
    rows = (_row(workload, subject, machine, found, error, note, *one) for one in passes)
    host = (found.host_forward, found.host_backward)
    forward_row, backward_row = (
        dataclasses.replace(row, host_us=1e6 * statistics.median(times) if times else None)
        for row, times in zip(rows, host, strict=True)
    )
    return forward_row, backward_row


def _row(
    workload: Workload,
    subject: Subject,
    machine: Machine,
    found: Measurement | None,
    error: float | None,
    note: str,
    direction: str,
    times: list[float],
    peak: int | None,
    share_of_copy: float | None,
    share_of_gemm: float | None,
) -> Row:
    median, p10, p90 = quantiles(times) if times else (None, None, None)
    return Row(
        op=workload.op,
        workload=workload.name,
        **dataclasses.asdict(subject),
        direction=direction,
        device=machine.device,
        threads=machine.threads,
        median_us=None if median is None else 1e6 * median,
        p10_us=None if p10 is None else 1e6 * p10,
        p90_us=None if p90 is None else 1e6 * p90,
        rounds=len(times),
        peak_mib=None if peak is None else peak / 2**20,
        share_of_copy=share_of_copy,
        share_of_gemm=share_of_gemm,
        error=error,
        method=found.method if found else "",
        note=note,
        torch=machine.torch,
        triton=machine.triton,
        commit=machine.commit,
    )


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Returns median, tenth and ninetieth percentile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return statistics.median(times), tenths[0], tenths[-1]


def append(path: Path, rows: list[Row]) -> None:
    """Appends rows to a CSV file; a new one starts with a header.

    Raises ValueError if the file has other columns.
    """
    names = [field.name for field in dataclasses.fields(Row)]
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file))
        if found != names:
            raise ValueError(
                f"{path} has the columns {', '.join(found)}; expected {', '.join(names)}. Name another "
                "file with --csv"
            )
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(names)
        writer.writerows(
            [_text(name, value) for name, value in dataclasses.asdict(row).items()] for row in rows
        )


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if name in NUMBERS else str(value)


def line(forward: Row, backward: Row) -> str:
    """Formats one implementation on one workload as a line of text."""
    name = f"{forward.peer} ({forward.implementation})" if forward.implementation else forward.peer
    head = f"  {name:32s}"
    if forward.median_us is None or backward.median_us is None:
        return f"{head} {forward.note}"
    times = f"{_time(forward.median_us)} {_time(backward.median_us)}  {backward.peak_mib:9.1f} MiB"
    shares = f"both: copy {backward.share_of_copy:4.0%}  gemm {backward.share_of_gemm:4.0%}"
    error = "error not measured" if forward.error is None else f"error {forward.error:.1e}"
    method = "" if forward.method in ("wall clock", "graph replay") else f"  ({forward.method})"
    host = ""
    if forward.host_us is not None and backward.host_us is not None:
        host = f"  host {forward.host_us + backward.host_us:.0f} us"
    return f"{head} {times}  {shares}  {error}{host}{method}"


def _time(microseconds: float) -> str:
    return f"{microseconds / 1000:9.2f} ms" if microseconds >= 1000 else f"{microseconds:9.1f} us"
