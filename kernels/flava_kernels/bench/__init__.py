"""Microbenchmarks of every operator against the peers that are installed: python -m flava_kernels.bench."""
