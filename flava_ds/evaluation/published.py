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


TEST_SAMPLES: dict[str, tuple[int, ...]] = {
    **{"imagenet": (50_000,), "food101": (25_250,), "cifar10": (10_000,), "cifar100": (10_000,)},
    **{"stanford_cars": (8_041,), "fgvc_aircraft": (3_333,), "dtd": (1_880,), "oxford_pets": (3_669,)},
    **{"caltech101": (6_085,), "flowers102": (6_149,), "mnist": (10_000,), "eurosat": (5_000,)},
    **{"gtsrb": (12_630,), "kitti": (1_496,), "pcam": (32_768,), "ucf101": (3_783,)},
    **{"clevr_counts": (15_000,), "sun397": (21_750,), "rendered_sst2": (1_821,), "country211": (21_100,)},
    "stl10": (13_000,),  # training images too, which lie in the folds of the same set
    "fer2013": (7_178,),  # PublicTest and PrivateTest
    "mnli": (9_815 + 9_832,),
    **{"cola": (1_043,), "mrpc": (408,), "qqp": (40_430,), "sst2": (872,), "qnli": (5_463,), "rte": (277,)},
    **{"stsb": (1_500,), "vqav2": (214_354,), "snli_ve": (17_901,), "hateful_memes": (2_000, 1_000)},
    **{"flickr30k": (1_000,), "coco": (5_000,), "winoground": (400,)},
}
"""Data set -> samples, or images with captions, of the split that published numbers are of; two where it may
be either of two splits."""
TOLERANCE = 0.1
"""By what share the samples may be fewer or more: copies of a set lack some lines or pictures, and papers
count it in different ways."""


def as_many_as_published(data: str, samples: int) -> bool:
    """Returns whether a result has about as many samples as a data set's published ones, if that is known."""
    sizes = TEST_SAMPLES.get(data, (samples,))
    return any(abs(samples - size) <= TOLERANCE * size for size in sizes)
