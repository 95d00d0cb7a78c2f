"""SNLI-VE: does a sentence follow from a picture? Accuracy on test, with weights that dev chose."""

from flava_ds.evaluation.datasets.snli_ve import SnliVe
from flava_ds.evaluation.tuning.fine_tuning import PairFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import multimodal

RECIPE = multimodal(samples=529_527, lr=1e-5, updates=24_000)
TASKS = (PairFineTuning("snli_ve", SnliVe(), Classes(), RECIPE, chosen_on=("dev",)),)
