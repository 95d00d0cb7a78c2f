"""Your own labelled images, one folder per class."""

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.zero_shot import ZeroShot

DATA = ImageFolder()
TASKS = (
    ZeroShot("image_folder_zero_shot", DATA),
    Neighbours("image_folder_neighbours", DATA),
    ImageProbe("image_folder_probe", DATA),
)
