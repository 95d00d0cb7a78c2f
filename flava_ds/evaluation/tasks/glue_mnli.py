"""MNLI of GLUE: does a sentence follow from another one? The mean of the accuracies on matched and mismatched
genres."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="mnli",
    folder="MNLI",
    licence="the OANC's, with parts under CC BY 3.0 and CC BY-SA 3.0",
    origin="by hand: MNLI.zip (313 MB) from the GLUE page, unpacked",
    texts=("sentence1", "sentence2"),
    label="gold_label",
    labels=("contradiction", "neutral", "entailment"),
    splits=("dev_matched", "dev_mismatched", "train"),
)
RECIPE = glue(samples=392_702, batch_size=32, lr=1e-5, updates=123_873, warmup_updates=7432)
TASKS = (
    TextFineTuning(
        "glue_mnli",
        DATA,
        Classes(),
        RECIPE,
        chosen_on=("dev_matched",),
        also=("dev_matched", "dev_mismatched"),
    ),
)
