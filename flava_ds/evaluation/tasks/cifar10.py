"""CIFAR-10. The paper reports its probe (Table C.1)."""

from flava_ds.evaluation.datasets.cifar10 import Cifar10
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.zero_shot import ZeroShot

DATA = Cifar10()
TASKS = (
    ZeroShot("cifar10_zero_shot", DATA),
    Neighbours("cifar10_neighbours", DATA),
    ImageProbe("cifar10_probe", DATA),
)
