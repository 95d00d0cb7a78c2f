"""VQA v2: questions on pictures, at 480 pixels, scored by the official accuracy.

The last weights are reported on val, which chose nothing; the paper's number is of test-dev, which only the
challenge's server scores.
"""

from flava_ds.evaluation.datasets.vqav2 import VqaV2
from flava_ds.evaluation.tuning.fine_tuning import PairFineTuning
from flava_ds.evaluation.tuning.goals import Answers
from flava_ds.evaluation.tuning.recipe import multimodal

RECIPE = multimodal(samples=443_757, lr=1e-4, updates=44_000, rows_at_once=16)
TASKS = (PairFineTuning("vqav2", VqaV2(), Answers(), RECIPE, enlarged=480 / 224),)
