"""MRPC of GLUE: do two sentences of the news say the same? The mean of accuracy and F1."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="mrpc",
    folder="MRPC",
    licence="Microsoft's terms for its Research Paraphrase Corpus",
    origin="by hand: Microsoft's Research Paraphrase Corpus (1.5 MB), cut into train.tsv and dev.tsv by "
    "GLUE's download script",
    texts=("#1 String", "#2 String"),
    label="Quality",
    class_names=("different", "paraphrase"),
)
RECIPE = glue(samples=3668, batch_size=16, lr=1e-5, updates=2296, warmup_updates=137)
TASKS = (TextFineTuning("glue_mrpc", DATA, Classes(("f1", "accuracy_and_f1")), RECIPE, chosen_on=("dev",)),)
