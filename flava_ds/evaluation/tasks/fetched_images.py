"""Labelled pictures that `flava-ds prepare fetch NAME` gets; tuxpaint_stamps has captions, too."""

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.datasets.karpathy import KarpathySplit
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.retrieval import Retrieval
from flava_ds.evaluation.zero_shot import ZeroShot

LICENCES_AND_SIZES = {
    "animal_silhouettes": ("MIT", "2.6 MB"),
    "digits_5k": ("CC-BY-SA-3.0", "1.4 MB"),
    "optical_digits": ("CC-BY-4.0", "0.1 MB"),
    "tuxpaint_stamps": ("GPL-2", "81 MB"),
}
SETS = {
    name: ImageFolder(
        name=name,
        folder=name,
        licence=licence,
        origin=f"`flava-ds prepare fetch {name} --data ROOT` ({size})",
        layout="train/ and test/ with CLASS/*.png",
    )
    for name, (licence, size) in LICENCES_AND_SIZES.items()
}
STAMPS = SETS["tuxpaint_stamps"]
CAPTIONED = KarpathySplit(
    name=STAMPS.name,
    folder=STAMPS.folder,
    licence=STAMPS.licence,
    origin=STAMPS.origin,
    json_name=f"dataset_{STAMPS.name}.json",
    image_folders=(".",),
    splits=("test",),
)
TASKS = (
    *(
        task
        for name, data in SETS.items()
        for task in (
            ZeroShot(f"{name}_zero_shot", data),
            Neighbours(f"{name}_neighbours", data),
            ImageProbe(f"{name}_probe", data),
        )
    ),
    Retrieval("tuxpaint_stamps_retrieval", CAPTIONED),
)
