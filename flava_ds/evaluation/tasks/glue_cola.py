"""CoLA of GLUE: is a sentence acceptable English? Matthews' correlation; its published file names no
columns."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="cola",
    folder="CoLA",
    licence="none stated: sentences quoted from linguists' publications, for research",
    origin="by hand: CoLA.zip (0.4 MB) from the GLUE page, unpacked",
    has_header=False,
    names=("source", "acceptable", "as marked by its author", "sentence"),
    texts=("sentence",),
    label="acceptable",
    class_names=("unacceptable", "acceptable"),
)
RECIPE = glue(samples=8551, batch_size=16, lr=1e-5, updates=5336, warmup_updates=320)
TASKS = (TextFineTuning("glue_cola", DATA, Classes(("matthews",)), RECIPE, chosen_on=("dev",)),)
