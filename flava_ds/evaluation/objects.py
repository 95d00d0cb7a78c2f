"""Average precision of the objects that a model finds in images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flava_ds.evaluation.frozen_model import BATCH_ROWS, FrozenModel, Lacking
from flava_ds.evaluation.labelled import LabelledObjects, Seen
from flava_ds.evaluation.preprocessing import WHOLE_TRANSFORM
from flava_ds.evaluation.protocols import EvaluationData, ObjectFinder, Score, Splits
from flava_ds.regions.average_precision import Boxes, mean_average_precision, without_classes


@dataclass(frozen=True)
class AveragePrecision:
    """AP50: the mean over classes of the area under precision over recall, at half overlap.

    Every query counts, by its likeliest class. Also for places alone, whatever the class.
    """

    name: str
    data: EvaluationData
    about: ClassVar[str] = "average precision of objects and their classes"
    group: ClassVar[str] = "validation"
    needs: ClassVar[tuple[type, ...]] = (ObjectFinder,)

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns AP50, and AP50 of places."""
        finder, samples = model.need(ObjectFinder, f"task {self.name}"), data.test()
        if finder.num_classes != len(samples.class_names):
            raise Lacking(
                f"task {self.name}: {model.described.name} tells {finder.num_classes} classes of objects, "
                f"but {samples.name} has {len(samples.class_names)}"
            )
        found, truths = told(find_all(model, finder, samples)), truths_of(samples)
        known = truths.of(np.flatnonzero(truths.labels >= 0))
        values = {
            "ap50": mean_average_precision(found, known),
            "ap50_places": mean_average_precision(without_classes(found), without_classes(truths)),
        }
        return {name: Score(value, len(samples), None) for name, value in values.items()}


def find_all(model: FrozenModel, finder: ObjectFinder, samples: LabelledObjects) -> Tensor:
    """Returns the box and the probabilities of every query of every image: [N Q 4+z]."""
    seen = Seen(samples, WHOLE_TRANSFORM)
    starts = range(0, len(samples), BATCH_ROWS)

    def mine() -> Iterator[Tensor]:
        for start in model.share.mine(starts):
            rows = range(start, min(start + BATCH_ROWS, len(samples)))
            pixels = seen.batch(rows, model.image_size)
            yield torch.cat(finder.find_objects(pixels.to(model.device)), dim=-1)

    return torch.cat([part.cpu() for part in model.share.join(starts, mine())])


def told(found: Tensor) -> Boxes:
    """Returns each query's box with its likeliest class: [N Q 4+z]."""
    count, queries = found.shape[:2]
    scores, labels = found[..., 4:].max(-1)
    images = torch.arange(count).repeat_interleave(queries)
    columns = (found[..., :4].flatten(0, 1).double(), labels.flatten(), images, scores.flatten())
    return Boxes(*(column.numpy() for column in columns))


def truths_of(samples: LabelledObjects) -> Boxes:
    """Returns the objects of all images."""
    images = np.repeat(np.arange(len(samples)), [len(own) for own in samples.labels])
    labels = np.concatenate(samples.labels)
    return Boxes(np.concatenate(samples.boxes).astype(np.float64), labels, images, np.ones(len(labels)))
