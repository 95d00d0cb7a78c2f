"""A pre-norm transformer decoder over packed sequences, which also attends to a memory of each sample."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flava_ds.batch import Packed
from flava_ds.layers.cross_attention import CrossAttention
from flava_ds.layers.fused import ResidualLayerNorm
from flava_ds.layers.transformer import Block, Transformer, TransformerShape
from flava_ds.layers.work import encoder_flops


class DecoderBlock(Block):
    """Causal attention, attention to the memory, MLP; each after a LayerNorm, with a residual.

    Stream and branch are those of Block. Source: Vaswani et al. 2017, section 3.1.
    """

    def __init__(self, shape: TransformerShape):
        super().__init__(shape, causal=True)
        self.cross_norm = ResidualLayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.cross_attention = CrossAttention(shape.hidden_size, shape.num_attention_heads)

    def decode(
        self, stream: Tensor, branch: Tensor | None, cu_seqlens: Tensor, max_seqlen: int, memory: Packed
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns stream and branch: [T d]."""
        normed, stream = self.attention_norm(branch, stream)
        attended = self.attention.output(self.attention(normed, cu_seqlens, max_seqlen, False))
        normed, stream = self.cross_norm(attended, stream)
        crossed = self.cross_attention(normed, cu_seqlens, max_seqlen, memory)
        normed, stream = self.mlp_norm(crossed, stream)
        return stream, self.mlp_down(self.mlp_up(normed))


class Decoder(Transformer):
    """A stack of decoder blocks; its owner also owns the final LayerNorm.

    Shapes:
        packed.hidden  [T d] -> [T d]
        memory.hidden  [S d]  as many sequences
    """

    def __init__(self, shape: TransformerShape):
        super().__init__(shape, causal=True)
        self.blocks = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.num_hidden_layers))

    def decode(self, packed: Packed, memory: Packed) -> Tensor:
        """Decodes packed sequences, each beside its memory."""
        stream, branch = packed.hidden, None
        checkpointing = self.activation_checkpointing and self.training
        for block in self.blocks:
            if checkpointing and self.checkpoint_sums and branch is not None:
                stream, branch = branch + stream, None
            arguments = (stream, branch, packed.cu_seqlens, packed.max_seqlen, memory)
            if checkpointing:
                stream, branch = checkpoint(block.decode, *arguments, use_reentrant=False)
            else:
                stream, branch = block.decode(*arguments)
        return stream if branch is None else stream + branch


def decoder_flops(shape: TransformerShape, lengths: Sequence[int], memory: Sequence[int]) -> float:
    """Returns the FLOPs of a decoder over sequences with as many memories, whose lengths are given.

    Attention to the memory has two projections of the sequences, two of the memory and two products.
    """
    d = shape.hidden_size
    rows, scores = sum(lengths) + sum(memory), sum(n * m for n, m in zip(lengths, memory, strict=True))
    crossed = shape.num_hidden_layers * (4 * rows * d * d + 4 * scores * d)
    return encoder_flops(shape, lengths, causal=True) + crossed
