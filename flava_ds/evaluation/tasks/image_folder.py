"""Your own labelled images, one folder per class. Where there are both test/ and val/, the latter chooses the
fine-tuned weights; else the last ones are reported."""

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.tasks.own import CROPS, RECIPE
from flava_ds.evaluation.tuning.fine_tuning import ImageFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.zero_shot import ZeroShot

DATA = ImageFolder()
TASKS = (
    ZeroShot("image_folder_zero_shot", DATA),
    Neighbours("image_folder_neighbours", DATA),
    ImageProbe("image_folder_probe", DATA),
    ImageFineTuning(
        "image_folder_tuned", DATA, Classes(), RECIPE, chosen_on=("val",), else_last=True, augment=CROPS
    ),
)
