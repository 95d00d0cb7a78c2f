"""The trainer's operators: torch references here, device kernels in triton_ops. Depends on torch only."""

from __future__ import annotations

from flava_kernels import overview
from flava_kernels.attention import OP as VARLEN_ATTENTION
from flava_kernels.contrastive import OP as INFO_NCE
from flava_kernels.cross_attention import OP as VARLEN_CROSS_ATTENTION
from flava_kernels.dropout import OP as DROPOUT
from flava_kernels.fusing import OP as FUSE_SEQUENCES
from flava_kernels.layer_norm import ADD_LAYER_NORM, LAYER_NORM
from flava_kernels.linear_cross_entropy import OP as LINEAR_CROSS_ENTROPY
from flava_kernels.linear_gelu import GELU_LINEAR, LINEAR_GELU
from flava_kernels.op import Op
from flava_kernels.packing import PACK, UNPACK
from flava_kernels.sigmoid_loss import OP as SIGMOID_LOSS

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        PACK,
        UNPACK,
        FUSE_SEQUENCES,
        VARLEN_ATTENTION,
        VARLEN_CROSS_ATTENTION,
        LAYER_NORM,
        ADD_LAYER_NORM,
        DROPOUT,
        LINEAR_GELU,
        GELU_LINEAR,
        LINEAR_CROSS_ENTROPY,
        INFO_NCE,
        SIGMOID_LOSS,
    )
}
"""Every operator by name, in the order of docs/kernels.md."""


def report() -> None:
    """Prints each operator's implementation on this machine under FLAVA_KERNELS, and the reason."""
    print(overview.table(OPS))
