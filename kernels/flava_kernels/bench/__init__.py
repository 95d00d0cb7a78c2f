"""Microbenchmarks of every operator against the installed peers: python -m flava_kernels.bench."""
