"""Your own labelled texts: a frozen probe, and fine-tuning. Where there is a split "val", it chooses the
fine-tuned weights; else the last epoch's are reported.
"""

from flava_ds.evaluation.datasets.own_text import OwnText
from flava_ds.evaluation.probe import TextProbe
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = OwnText()
RECIPE = glue(samples=1, batch_size=16, lr=2e-5, updates=100, warmup_updates=6)
"""That of GLUE's small sets: ten epochs, of which the first 6 % are warm-up."""
TASKS = (
    TextProbe("own_text_probe", DATA),
    TextFineTuning("own_text_tuned", DATA, Classes(), RECIPE, chosen_on=("val",), else_last=True),
)
