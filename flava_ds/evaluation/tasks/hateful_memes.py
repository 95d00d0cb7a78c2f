"""Hateful Memes: the area under the ROC curve on the test split, with weights that a development split chose.

The paper does not say whether its splits are the seen or the unseen ones; the unseen ones are the final ones.
"""

from flava_ds.evaluation.datasets.hateful_memes import HatefulMemes
from flava_ds.evaluation.tuning.fine_tuning import PairFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import multimodal

GOAL = Classes(("roc_area",), chosen_by_roc_area=True)
RECIPE = multimodal(samples=8500, lr=1e-5, updates=24_000)
TASKS = (PairFineTuning("hateful_memes", HatefulMemes(), GOAL, RECIPE, chosen_on=("dev_unseen", "dev_seen")),)
