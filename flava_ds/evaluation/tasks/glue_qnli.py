"""QNLI of GLUE: does a sentence of an encyclopaedia answer a question? Accuracy."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="qnli",
    folder="QNLI",
    licence="CC BY-SA 4.0, SQuAD's",
    origin="by hand: QNLIv2.zip (11 MB) from the GLUE page, unpacked",
    texts=("question", "sentence"),
    label="label",
    labels=("entailment", "not_entailment"),
)
RECIPE = glue(samples=104_743, batch_size=32, lr=1e-5, updates=33_112, warmup_updates=1986)
TASKS = (TextFineTuning("glue_qnli", DATA, Classes(), RECIPE, chosen_on=("dev",)),)
