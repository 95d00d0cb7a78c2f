"""Operators of the trainer: torch references here, device kernels under triton_ops. Depends on torch only."""
