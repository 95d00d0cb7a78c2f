"""Your own test set in shards: by label, and by caption."""

from flava_ds.evaluation.datasets.own_shards import OwnShards
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.probe import ImageProbe
from flava_ds.evaluation.retrieval import Retrieval
from flava_ds.evaluation.zero_shot import ZeroShot

LABELLED, CAPTIONED = OwnShards(), OwnShards(captioned=True)
TASKS = (
    ZeroShot("own_zero_shot", LABELLED),
    Neighbours("own_neighbours", LABELLED),
    ImageProbe("own_probe", LABELLED),
    Retrieval("own_retrieval", CAPTIONED),
)
