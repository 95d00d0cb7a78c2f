"""Bugs to plant in the kernels, each with the cases that have to notice it; mutation_run.py runs them."""

from mutants_of_products import ATTENTION, CONTRASTIVE, LINEAR_CROSS_ENTROPY, LINEAR_GELU
from mutants_of_rows import COLUMN_SUMS, FUSING, LAYER_NORM, PACKING

MUTANTS = {
    "packing": PACKING,
    "fusing": FUSING,
    "attention": ATTENTION,
    "layer_norm": LAYER_NORM,
    "column_sums": COLUMN_SUMS,
    "linear_gelu": LINEAR_GELU,
    "linear_cross_entropy": LINEAR_CROSS_ENTROPY,
    "contrastive": CONTRASTIVE,
}
"""By module of triton_ops."""
