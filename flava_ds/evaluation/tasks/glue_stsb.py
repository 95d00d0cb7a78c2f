"""STS-B of GLUE: how alike are two sentences, from 0 to 5? Pearson's correlation, and its mean with
Spearman's."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Regression
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="stsb",
    folder="STS-B",
    licence="by source, in the folder's LICENSE.txt",
    origin="by hand: STS-B.zip (0.8 MB) from the GLUE page, unpacked",
    texts=("sentence1", "sentence2"),
    label="score",
    labels=(),
    highest=5.0,
)
RECIPE = glue(samples=5749, batch_size=16, lr=2e-5, updates=3598, warmup_updates=214)
TASKS = (TextFineTuning("glue_stsb", DATA, Regression(highest=5.0), RECIPE, chosen_on=("dev",)),)
