"""The optimizers: one file each, with its frozen config and what it keeps beside the weights."""
