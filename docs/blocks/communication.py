"""docs/communication.md: bytes of every collective of a step, from `benchmarks/communication.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results
from flava_ds.watching.communication import PARTS, sent


def communication(root: Path) -> str:
    """Lists payloads per part, and what leaves a rank, measured, in theory and in the ZeRO paper."""
    results = read_results(root, "communication")
    found = {part for row in results["rows"] for part, *_ in row["measured"]}
    parts = [part for part in PARTS if part in found] + sorted(found - set(PARTS))
    header, lines = (
        [
            "setting",
            "step",
            *parts,
            "calls",
            "sent by a rank",
            "theory",
            "gradients and weights against the paper",
        ],
        [],
    )
    for row in results["rows"]:
        measured, theory = (
            {(part, collective): size for part, collective, size in row[what]}
            for what in ("measured", "theory")
        )
        zero = sent(
            {key: size for key, size in measured.items() if key[0] in ("gradients", "weights")},
            results["ranks"],
        )
        apart = sent(measured, results["ranks"]) / sent(theory, results["ranks"]) - 1
        agrees = "equal" if measured == theory else "none" if row["changed"] else f"{apart:+.3%}"
        cells = [
            row["setting"],
            row["kind"] + (" after another kind" if row["changed"] else ""),
            *(cell(measured, part) for part in parts),
        ]
        lines.append(
            [
                *cells,
                row["calls"],
                kib(sent(measured, results["ranks"])),
                agrees,
                f"{zero / row['paper']:.2f} of {kib(row['paper'])}",
            ]
        )
    weights = kib(results["weights"])
    return (
        f"{results['ranks']} gloo ranks, `{results['recipe']}`: {weights} of trainable weights in "
        f"fp32.\n\n{markdown_table(header, lines)}"
    )


def cell(payloads: dict[tuple[str, str], int], part: str) -> str:
    """Names a part's collectives with their payloads."""
    return (
        ", ".join(
            f"{collective} {kib(size)}" for (what, collective), size in payloads.items() if what == part
        )
        or "none"
    )


def kib(size: float) -> str:
    """Spells bytes, in KiB from 1024 on."""
    return (
        f"{size:.0f} B"
        if size < 1024
        else f"{size / 1024:,.1f} KiB"
        if size < 100 * 1024
        else f"{size / 1024:,.0f} KiB"
    )


BLOCKS = {"communication": communication}
