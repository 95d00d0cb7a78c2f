"""Published results for the same protocols, printed next to ours."""

from __future__ import annotations

from dataclasses import dataclass

from flava_ds.evaluation.paper_table import PAPER, RIVAL_NUMBERS, ROWS, on_its_split

SHOWN = ("FLAVA", "CLIP-400M")
"""The columns of the paper's table that stand beside a number of ours; a suite's page shows more."""
WINOGROUND = "Winoground, Table 3"


@dataclass(frozen=True)
class Published:
    """One number, a share like ours."""

    of: str
    """The system, and the split where that is another than ours."""
    value: float
    source: str


def _winoground(text: float, image: float, group: float) -> dict[str, float]:
    """The three scores in per cent as printed."""
    return {"text_score": text, "image_score": image, "group_score": group}


_NUMBERS = {
    (row.task, row.number): tuple(
        Published(on_its_split(of, row.task), value, PAPER)
        for of in SHOWN
        if (value := row.values[of]) is not None
    )
    for row in ROWS
} | {
    (task, number): (Published("FLAVA", value / 100, WINOGROUND),)
    for task, scores in {
        "winoground_contrastive": _winoground(25.25, 13.50, 9.00),
        "winoground_matching": _winoground(32.25, 20.50, 14.25),
    }.items()
    for number, value in scores.items()
}
"""(task, number) -> what is published; absent where the protocol differs."""


def published(task: str, number: str, family: str = "") -> tuple[Published, ...]:
    """Returns the published results for a task's number, first that of the model's own `family`; empty if
    there are none.
    """
    own = RIVAL_NUMBERS.get((task, number, family))
    first = () if own is None else (Published(*own),)
    return first + _NUMBERS.get((task, number), ())
