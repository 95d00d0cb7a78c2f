"""SST-2 of GLUE as a frozen probe. The paper fine-tunes, a different protocol with higher results."""

from flava_ds.evaluation.datasets.glue import GlueSentences
from flava_ds.evaluation.probe import TextProbe

DATA = GlueSentences(
    name="sst2",
    folder="SST-2",
    licence="that of the Stanford Sentiment Treebank, which states none; research use is customary",
    origin="by hand: SST-2.zip from the GLUE page, unpacked",
    sentence="sentence",
    label="label",
    class_names=("negative", "positive"),
)
TASKS = (TextProbe("sst2_probe", DATA),)
