"""Ten animals as silhouettes of 28 pixels, which `flava-ds prepare fetch animal_silhouettes` gets."""

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.zero_shot import ZeroShot

DATA = ImageFolder(
    name="animal_silhouettes",
    folder="animal_silhouettes",
    licence="MIT",
    origin="`flava-ds prepare fetch animal_silhouettes --data ROOT`",
    layout="train/ and test/ with CLASS/*.png",
)
TASKS = (
    ZeroShot("animal_silhouettes_zero_shot", DATA),
    Neighbours("animal_silhouettes_neighbours", DATA),
    ImageProbe("animal_silhouettes_probe", DATA),
)
