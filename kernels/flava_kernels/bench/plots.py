"""A figure per operator: time of both passes and peak memory of every implementation, per workload."""

from __future__ import annotations

import importlib
from pathlib import Path

from flava_kernels.bench.table import Row

COLORS = {"forward": "#4477aa", "backward": "#88ccee", "memory": "#cc6677"}


def write(folder: Path, rows: list[Row]) -> list[Path]:
    """Draws one PNG per operator. Returns their paths. Raises ModuleNotFoundError without matplotlib."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _draw(folder / f"{op}.png", [row for row in rows if row.op == op])
        for op in dict.fromkeys(row.op for row in rows)
    ]


def _draw(path: Path, rows: list[Row]) -> Path:
    pyplot = importlib.import_module("matplotlib.pyplot")
    names = list(dict.fromkeys(row.workload for row in rows))
    measured = {name: _measured(rows, name) for name in names}
    heights = [max(1, len(measured[name])) + 1.2 for name in names]
    figure, axes = pyplot.subplots(
        len(names),
        2,
        figsize=(11, 0.45 * sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for (left, right), name in zip(axes, names, strict=True):
        peers = measured[name]
        left.barh(
            list(peers),
            [_ms(forward) for forward, _ in peers.values()],
            color=COLORS["forward"],
            label="forward",
        )
        left.barh(
            list(peers),
            [_ms(backward) for _, backward in peers.values()],
            left=[_ms(forward) for forward, _ in peers.values()],
            color=COLORS["backward"],
            label="backward",
        )
        right.barh(list(peers), [pair[1].peak_mib for pair in peers.values()], color=COLORS["memory"])
        left.set_title(name, loc="left", fontsize=9)
        right.set_yticklabels([])
        for axis, label in ((left, "median, ms"), (right, "peak memory, MiB")):
            axis.invert_yaxis()
            axis.set_xlabel(label, fontsize=8)
            axis.tick_params(labelsize=8)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(
        (
            f"{rows[0].op}: {rows[0].dtype} on {rows[0].device}, {rows[0].threads} threads, torch "
            f"{rows[0].torch}"
        ),
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _ms(row: Row) -> float:
    assert row.median_us is not None, "a row that _measured leaves out"
    return row.median_us / 1000


def _measured(rows: list[Row], workload: str) -> dict[str, tuple[Row, Row]]:
    """Returns the forward and backward rows of each implementation that has numbers."""
    found = {
        (row.peer, row.direction): row
        for row in rows
        if row.workload == workload and row.median_us is not None
    }
    peers = dict.fromkeys(peer for peer, _ in found)
    return {peer: (found[peer, "forward"], found[peer, "backward"]) for peer in peers}
