"""Winoground, by embeddings and by the matching head. Its paper has both for the released FLAVA."""

from flava_ds.evaluation.contrasts import EmbeddingContrast, MatchingContrast
from flava_ds.evaluation.datasets.winoground import Winoground

DATA = Winoground()
TASKS = (EmbeddingContrast("winoground_contrastive", DATA), MatchingContrast("winoground_matching", DATA))
