"""CIFAR-100, by its 100 fine classes. The paper has its probe (Table C.1)."""

from flava_ds.evaluation.datasets.cifar import Cifar
from flava_ds.evaluation.probe import ImageProbe

DATA = Cifar(
    name="cifar100",
    folder="cifar-100-python",
    origin="by hand: cifar-100-python.tar.gz (169 MB) from the University of Toronto's CIFAR page, unpacked",
    layout="train, test and meta",
    files=(("test", ("test",)), ("train", ("train",))),
    meta="meta",
    names_field="fine_label_names",
    labels_field="fine_labels",
)
TASKS = (ImageProbe("cifar100_probe", DATA),)
