"""RTE of GLUE: does a sentence follow from a passage? Accuracy; one of its 277 samples is 0.36 points."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="rte",
    folder="RTE",
    licence="none stated; research use is customary",
    origin="by hand: RTE.zip (0.7 MB) from the GLUE page, unpacked",
    texts=("sentence1", "sentence2"),
    label="label",
    labels=("entailment", "not_entailment"),
)
RECIPE = glue(samples=2490, batch_size=16, lr=2e-5, updates=2036, warmup_updates=122)
TASKS = (TextFineTuning("glue_rte", DATA, Classes(), RECIPE, chosen_on=("dev",)),)
