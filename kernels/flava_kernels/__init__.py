"""Operators of the trainer: torch references here, device kernels under triton_ops. Depends on torch only."""

from __future__ import annotations

from flava_kernels.contrastive import OP as INFO_NCE
from flava_kernels.op import Op

OPS: dict[str, Op] = {op.name: op for op in (INFO_NCE,)}
"""Every operator by name, in the order of docs/kernels.md."""
