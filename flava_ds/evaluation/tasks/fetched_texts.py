"""Labelled texts that `flava-ds prepare fetch NAME` gets, as frozen probes and fine-tuned."""

from flava_ds.evaluation.datasets.own_text import OwnText
from flava_ds.evaluation.probe import TextProbe
from flava_ds.evaluation.tasks.own_text import RECIPE
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes

LICENCES_AND_SIZES = {
    "bbc_news": ("the texts are the BBC's, for research", "3 MB"),
    "product_reviews": ("CC-BY-4.0", "0.1 MB"),
    "tweets": ("the messages are their authors', for research", "1.6 MB"),
    "wordnet_glosses": ("WordNet-3.0", "11 MB"),
    "wordnet_uses": ("WordNet-3.0", "11 MB"),
}
OF_PAIRS = ("wordnet_uses",)
"""Sets of pairs of texts, which only a fine-tuned encoder reads together."""
SETS = {
    name: OwnText(
        name=name,
        folder=name,
        licence=licence,
        origin=f"`flava-ds prepare fetch {name} --data ROOT` ({size})",
        layout=f"train.tsv and test.tsv with the columns text, {'second, ' * (name in OF_PAIRS)}label",
    )
    for name, (licence, size) in LICENCES_AND_SIZES.items()
}
TASKS = tuple(
    task
    for name, data in SETS.items()
    for task in (
        *(() if name in OF_PAIRS else (TextProbe(f"{name}_probe", data),)),
        TextFineTuning(f"{name}_tuned", data, Classes(), RECIPE),
    )
)
