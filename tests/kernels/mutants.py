"""Bugs to plant in the kernels, each with the cases that have to notice it; mutation_run.py runs them."""

from mutants_of_attention import ATTENTION, CROSS_ATTENTION
from mutants_of_products import CONTRASTIVE, LINEAR_CROSS_ENTROPY, LINEAR_GELU, SIGMOID_LOSS
from mutants_of_rows import COLUMN_SUMS, DROPOUT, FUSING, LAYER_NORM, PACKING

MUTANTS = {
    "packing": PACKING,
    "fusing": FUSING,
    "attention": ATTENTION,
    "cross_attention": CROSS_ATTENTION,
    "layer_norm": LAYER_NORM,
    "dropout": DROPOUT,
    "column_sums": COLUMN_SUMS,
    "linear_gelu": LINEAR_GELU,
    "linear_cross_entropy": LINEAR_CROSS_ENTROPY,
    "contrastive": CONTRASTIVE,
    "sigmoid_loss": SIGMOID_LOSS,
}
"""By module of triton_ops."""
