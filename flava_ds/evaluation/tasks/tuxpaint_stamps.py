"""Photographs and drawings with captions, which `flava-ds prepare fetch tuxpaint_stamps` gets."""

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.datasets.karpathy import KarpathySplit
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.retrieval import Retrieval
from flava_ds.evaluation.zero_shot import ZeroShot

NAME, LICENCE = "tuxpaint_stamps", "GPL-2"
ORIGIN = "`flava-ds prepare fetch tuxpaint_stamps --data ROOT`"
LABELLED = ImageFolder(
    name=NAME,
    folder=NAME,
    licence=LICENCE,
    origin=ORIGIN,
    layout="train/ and test/ with CATEGORY/*.png",
)
CAPTIONED = KarpathySplit(
    name=NAME,
    folder=NAME,
    licence=LICENCE,
    origin=ORIGIN,
    json_name=f"dataset_{NAME}.json",
    image_folders=(".",),
    splits=("test",),
)
TASKS = (
    ZeroShot("tuxpaint_stamps_zero_shot", LABELLED),
    Neighbours("tuxpaint_stamps_neighbours", LABELLED),
    ImageProbe("tuxpaint_stamps_probe", LABELLED),
    Retrieval("tuxpaint_stamps_retrieval", CAPTIONED),
)
