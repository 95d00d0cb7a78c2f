"""CIFAR-100, by its 100 fine classes. The paper has its probe (Table C.1)."""

from flava_ds.evaluation.datasets.cifar import LICENCE, split_in_pickles
from flava_ds.evaluation.datasets.published_images import PublishedImages
from flava_ds.evaluation.probe import ImageProbe

DATA = PublishedImages(
    name="cifar100",
    folder="cifar-100-python",
    licence=LICENCE,
    origin="by hand: cifar-100-python.tar.gz (169 MB) from the University of Toronto's CIFAR page, unpacked",
    layout="train, test and meta",
    variants=split_in_pickles(
        {"test": ["test"], "train": ["train"]}, meta="meta", names="fine_label_names", labels="fine_labels"
    ),
)
TASKS = (ImageProbe("cifar100_probe", DATA),)
