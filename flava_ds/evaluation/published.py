"""Published results for the same protocols, printed next to ours."""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "FLAVA, Table C.1"


@dataclass(frozen=True)
class Published:
    """One number, a share like ours."""

    of: str
    value: float
    source: str


def _table_c1(flava: float, clip: float) -> tuple[Published, ...]:
    """Returns columns 12 and 14, in per cent as printed."""
    return Published("FLAVA", flava / 100, PAPER), Published("CLIP-400M", clip / 100, PAPER)


_NUMBERS = {
    ("cifar10_probe", "accuracy"): _table_c1(92.87, 94.93),
    ("flickr30k_retrieval", "image_to_text_recall_at_1"): _table_c1(67.70, 82.20),
    ("flickr30k_retrieval", "image_to_text_recall_at_5"): _table_c1(94.00, 96.60),
    ("flickr30k_retrieval", "text_to_image_recall_at_1"): _table_c1(65.22, 62.08),
    ("flickr30k_retrieval", "text_to_image_recall_at_5"): _table_c1(89.38, 85.68),
    ("coco_retrieval", "image_to_text_recall_at_1"): _table_c1(42.74, 52.48),
    ("coco_retrieval", "image_to_text_recall_at_5"): _table_c1(76.76, 76.68),
    ("coco_retrieval", "text_to_image_recall_at_1"): _table_c1(38.38, 33.07),
    ("coco_retrieval", "text_to_image_recall_at_5"): _table_c1(67.47, 58.37),
}
"""(task, number) -> the paper's result; missing where the protocol differs (SST-2 is fine-tuned there)."""


def published(task: str, number: str) -> tuple[Published, ...]:
    """Returns the published results for a task's number; empty if there are none."""
    return _NUMBERS.get((task, number), ())
