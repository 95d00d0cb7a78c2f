"""CIFAR-10. The paper reports its probe (Table C.1)."""

from flava_ds.evaluation.datasets.cifar import LICENCE, split_in_pickles
from flava_ds.evaluation.datasets.published_images import PublishedImages
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.zero_shot import ZeroShot

TEMPLATES = (
    *("a photo of a {}.", "a blurry photo of a {}.", "a black and white photo of a {}."),
    *("a low contrast photo of a {}.", "a high contrast photo of a {}.", "a bad photo of a {}."),
    *("a good photo of a {}.", "a photo of a small {}.", "a photo of a big {}."),
)
"""Half of CLIP's prompts for this set; the other half has 'the' for 'a'. Source: CLIP, data/prompts.md."""
DATA = PublishedImages(
    name="cifar10",
    folder="cifar-10-batches-py",
    licence=LICENCE,
    origin="by hand: cifar-10-python.tar.gz from the University of Toronto's CIFAR page (170 MB), unpacked",
    layout="data_batch_1 to data_batch_5, test_batch and batches.meta",
    variants=split_in_pickles(
        {"test": ["test_batch"], "train": [f"data_batch_{number}" for number in range(1, 6)]},
        meta="batches.meta",
        names="label_names",
        labels="labels",
    ),
    templates=TEMPLATES,
)
TASKS = (
    ZeroShot("cifar10_zero_shot", DATA),
    Neighbours("cifar10_neighbours", DATA),
    ImageProbe("cifar10_probe", DATA),
)
