"""Scenes of the demo's drawings at 96 pixels: questions, whether a statement follows, and objects.

Training is on scenes of the training styles; unseen styles are reported, or, with --split, unseen concepts.
The last weights are reported.
"""

from flava_ds.evaluation.datasets.scenes import COUNTS, SceneObjects, Scenes
from flava_ds.evaluation.objects import AveragePrecision
from flava_ds.evaluation.tuning.fine_tuning import PairFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import Recipe

RECIPE = Recipe(
    samples=COUNTS["train"], batch_size=32, lr=3e-4, updates=500, warmup_updates=30, weight_decay=0.1
)
PIXELS = 96
QUESTIONS, STATEMENTS = Scenes(), Scenes(name="scene_entailment", statements=True)
TASKS = (
    *(
        PairFineTuning(data.name, data, Classes(metrics=("majority",)), RECIPE, image_size=PIXELS)
        for data in (QUESTIONS, STATEMENTS)
    ),
    AveragePrecision("scene_objects", SceneObjects()),
)
