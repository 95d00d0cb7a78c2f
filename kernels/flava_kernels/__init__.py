"""Operators of the trainer: torch references here, device kernels under triton_ops. Depends on torch only."""

from __future__ import annotations

from flava_kernels.op import Op

OPS: dict[str, Op] = {}
"""Every operator by name, in the order of docs/kernels.md."""
