"""SST-2 of GLUE: is a sentence of a film review positive? Fine-tuned as in the paper, and as a frozen probe,
which is another protocol and reads lower."""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.probe import TextProbe
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes
from flava_ds.evaluation.tuning.recipe import glue

DATA = Glue(
    name="sst2",
    folder="SST-2",
    licence="that of the Stanford Sentiment Treebank, which states none; research use is customary",
    origin="by hand: SST-2.zip (7 MB) from the GLUE page, unpacked",
    texts=("sentence",),
    label="label",
    class_names=("negative", "positive"),
)
RECIPE = glue(samples=67_349, batch_size=32, lr=1e-5, updates=20_935, warmup_updates=1256)
TASKS = (
    TextFineTuning("glue_sst2", DATA, Classes(), RECIPE, chosen_on=("dev",)),
    TextProbe("sst2_probe", DATA),
)
