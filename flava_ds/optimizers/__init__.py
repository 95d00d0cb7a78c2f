"""The optimizers: one file each, with a frozen config and the state kept per weight."""
