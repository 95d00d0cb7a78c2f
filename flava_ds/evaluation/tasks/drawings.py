"""The demo's drawings by their group: which of the training drawings a drawing in an unseen style is near."""

from flava_ds.evaluation.datasets.drawings import Drawings
from flava_ds.evaluation.neighbours import Neighbours

TASKS = (Neighbours("drawings_neighbours", Drawings()),)
