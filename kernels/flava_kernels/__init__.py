"""Operators of the trainer: torch references here, device kernels under triton_ops. Depends on torch only."""

from __future__ import annotations

from flava_kernels.attention import OP as VARLEN_ATTENTION
from flava_kernels.contrastive import OP as INFO_NCE
from flava_kernels.fusing import OP as FUSE_SEQUENCES
from flava_kernels.op import Op
from flava_kernels.packing import PACK, UNPACK

OPS: dict[str, Op] = {op.name: op for op in (PACK, UNPACK, FUSE_SEQUENCES, VARLEN_ATTENTION, INFO_NCE)}
"""Every operator by name, in the order of docs/kernels.md."""
