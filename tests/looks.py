"""A task of one's own for runs in other processes, which read it from this file."""

from __future__ import annotations

import dataclasses

from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM
from flava_ds.evaluation.protocols import ImageFeatures, Score


@dataclasses.dataclass(frozen=True)
class Looks:
    """A number that every weight of the image encoder moves a little."""

    name: str = "looks"
    about: str = "mean of half of the features"
    needs: tuple = (ImageFeatures,)
    data: ImageFolder = ImageFolder()

    def run(self, model, data):
        features = model.image_features(Seen(data.test(), CLIP_TRANSFORM), self.name)
        return {"mean": Score(float(features[:, ::2].double().mean()), len(features), None)}


TASKS = (Looks(),)
