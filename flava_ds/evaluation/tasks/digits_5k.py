"""5,000 of MNIST's digits, which `flava-ds prepare fetch digits_5k` gets."""

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.zero_shot import ZeroShot

DATA = ImageFolder(
    name="digits_5k",
    folder="digits_5k",
    licence="CC-BY-SA-3.0",
    origin="`flava-ds prepare fetch digits_5k --data ROOT`",
    layout="train/ and test/ with CLASS/*.png",
)
TASKS = (
    ZeroShot("digits_5k_zero_shot", DATA),
    Neighbours("digits_5k_neighbours", DATA),
    ImageProbe("digits_5k_probe", DATA),
)
