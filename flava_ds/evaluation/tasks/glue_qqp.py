"""QQP of GLUE: do two questions ask the same? The mean of accuracy and F1; lines without six columns are left
out."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="qqp",
    folder="QQP",
    licence="Quora's terms of service: not for commercial use",
    origin="by hand: QQP-clean.zip (42 MB) from the GLUE page, unpacked",
    texts=("question1", "question2"),
    label="is_duplicate",
    class_names=("different", "duplicate"),
    drops_short_lines=True,
)
RECIPE = glue(samples=363_846, batch_size=32, lr=1e-5, updates=113_272, warmup_updates=28_318)
TASKS = (TextFineTuning("glue_qqp", DATA, Classes(("f1", "accuracy_and_f1")), RECIPE, chosen_on=("dev",)),)
