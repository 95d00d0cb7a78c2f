"""Your own sets in shards: pictures by label or caption, and fine-tuning on labelled pictures, alone or with
their texts.

Where there is a split "val", it chooses the fine-tuned weights; else the last ones are reported.
"""

from flava_ds.config import ImageTransformConfig
from flava_ds.evaluation.datasets.own_shards import OwnShards
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.retrieval import Retrieval
from flava_ds.evaluation.tuning.fine_tuning import ImageFineTuning, PairFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.evaluation.zero_shot import ZeroShot

LABELLED, CAPTIONED, PAIRS = OwnShards(), OwnShards(reads="captions"), OwnShards(reads="label and text")
RECIPE = Recipe(
    samples=1,
    batch_size=32,
    lr=2e-5,
    updates=100,
    warmup_updates=6,
    epochs=10,
    cosine=True,
    weight_decay=1e-2,
)
"""The paper's optimizer for pairs, for a small set: ten epochs, of which the first 6 % are warm-up. The paper
fine-tunes nothing on pictures alone."""
CROPS = ImageTransformConfig(crop_scale=(0.5, 1.0))
"""Training pictures lose up to half of their area. They are not mirrored, as letters and hands are not."""
TASKS = (
    ZeroShot("own_zero_shot", LABELLED),
    Neighbours("own_neighbours", LABELLED),
    ImageProbe("own_probe", LABELLED),
    Retrieval("own_retrieval", CAPTIONED),
    ImageFineTuning(
        "own_image_tuned", LABELLED, Classes(), RECIPE, chosen_on=("val",), else_last=True, augment=CROPS
    ),
    PairFineTuning("own_tuned", PAIRS, Classes(), RECIPE, chosen_on=("val",), else_last=True),
)
