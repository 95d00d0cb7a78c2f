"""The transformer shared by all encoders, over packed sequences: pre-norm, or post-norm as in BERT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from flava_kernels.attention import varlen_attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flava_ds.batch import Packed
from flava_ds.layers.fused import (
    ACTIVATIONS,
    Branch,
    FoldingLinear,
    GELULinear,
    LinearGELU,
    ResidualLayerNorm,
)
from flava_ds.layers.hidden_dropout import ACTIVATION, ATTENTION, MLP, HiddenDropout
from flava_ds.layers.one_node import run_as_one_node


class TransformerShape(Protocol):
    """What a transformer needs of an encoder's configuration."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def num_attention_heads(self) -> int: ...

    @property
    def intermediate_size(self) -> int: ...

    @property
    def layer_norm_eps(self) -> float: ...


class Attention(nn.Module):
    """Multi-head self-attention within each packed sequence, without the output projection.

    The block applies the projection, only to the rows that it keeps. With `causal`, tokens attend to no later
    token.

    Shapes:
        hidden  [T d] -> [T d]
    """

    def __init__(self, hidden_size: int, num_heads: int, *, causal: bool = False):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = FoldingLinear(hidden_size, 3 * hidden_size)
        self.output = FoldingLinear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int, equal_lengths: bool) -> Tensor:
        projected, bias = self.qkv.unsummed(hidden)
        qkv = rearrange(projected, "T (three h e) -> T three h e", three=3, h=self.num_heads)
        context = varlen_attention(
            qkv, cu_seqlens, max_seqlen, equal_lengths=equal_lengths, causal=self.causal, qkv_bias=bias
        )
        return rearrange(context, "T h e -> T (h e)")


class Block(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP, residual.

    `activation` of the MLP is "gelu" (erf) or "quick_gelu".

    A sublayer's output is added to the stream by the kernel of the next LayerNorm, so a block takes and
    returns the stream and the branch still to be added. With `rows`, everything after attention, three
    quarters of a block's work, is computed for these rows only.

    Shapes:
        stream  [T d] -> [T d], or [k d] with rows [k]
        branch  [T d] -> [T d], or [k d] with rows, and its bias; None before the first block
        paths   [2 T]  factors of what attention and MLP add to each row (stochastic depth); None for 1
    `drops` drops elements of both, and with `drops_inside` of the MLP's activations; None for none.
    """

    drops_inside = False
    """Whether dropout also takes the MLP's activations."""

    def __init__(self, shape: TransformerShape, *, causal: bool = False, activation: str = "gelu"):
        super().__init__()
        self.attention_norm = ResidualLayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.attention = self.attention_of(shape, causal)
        self.mlp_norm = ResidualLayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.mlp_up = ACTIVATIONS[activation](shape.hidden_size, shape.intermediate_size)
        self.mlp_down = GELULinear(shape.intermediate_size, shape.hidden_size)

    def forward(
        self,
        stream: Tensor,
        branch: Branch | None,
        cu_seqlens: Tensor,
        max_seqlen: int,
        equal_lengths: bool,
        rows: Tensor | None = None,
        paths: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> tuple[Tensor, Branch | None]:
        if paths is None and drops is None:
            done = run_as_one_node(self, stream, branch, cu_seqlens, max_seqlen, equal_lengths, rows)
            if done is not None:
                stream, activations = done
                return stream, branch_of(self.mlp_down, activations, MLP, None, None)
        normed, stream = self.attention_norm(branch, stream)
        context = self.attention(normed, cu_seqlens, max_seqlen, equal_lengths)
        if rows is not None:
            stream, context = stream.index_select(0, rows), context.index_select(0, rows)
            paths = None if paths is None else paths.index_select(1, rows)
            drops = None if drops is None else drops.at(rows)
        attended = branch_of(self.attention.output, context, ATTENTION, paths, drops)
        normed, stream = self.mlp_norm(attended, stream)
        return stream, self.mlp(normed, paths, drops)

    def is_plain(self) -> bool:
        """Returns True if neither the block nor its attention is of another kind."""
        return type(self) is Block and type(self.attention) is Attention

    def attention_of(self, shape: Any, causal: bool) -> Attention:
        """Builds the block's attention."""
        return Attention(shape.hidden_size, shape.num_attention_heads, causal=causal)

    def mlp(self, hidden: Tensor, paths: Tensor | None, drops: HiddenDropout | None) -> Branch:
        """Computes what the MLP adds: [T d] -> [T d]."""
        activations = self.mlp_up(hidden)
        if drops is not None and self.drops_inside:
            activations = drops(activations, ACTIVATION)
        return branch_of(self.mlp_down, activations, MLP, paths, drops)

    def recompute_gelu(self, wanted: bool) -> None:
        """Keeps GELU's input alone instead of input and result; a block with another activation, or that
        drops some of the results, stays.
        """
        if isinstance(self.mlp_up, LinearGELU) and not self.drops_inside:
            self.mlp_up.activates, self.mlp_down.activates = not wanted, wanted


class PostNormBlock(Block):
    """Attention, residual, LayerNorm; MLP, residual, LayerNorm: the stream goes on with the normalised rows.

    Both residuals are added by the kernel of their LayerNorm, so nothing is left to add: the branch is None
    on both ends.

    Source: Devlin et al. 2019, BERT; Vaswani et al. 2017, section 3.1.
    """

    def forward(
        self,
        stream: Tensor,
        branch: Branch | None,
        cu_seqlens: Tensor,
        max_seqlen: int,
        equal_lengths: bool,
        rows: Tensor | None = None,
        paths: Tensor | None = None,
        drops: HiddenDropout | None = None,
    ) -> tuple[Tensor, None]:
        context = self.attention(stream, cu_seqlens, max_seqlen, equal_lengths)
        if rows is not None:
            stream, context = stream.index_select(0, rows), context.index_select(0, rows)
            paths = None if paths is None else paths.index_select(1, rows)
            drops = None if drops is None else drops.at(rows)
        attended = branch_of(self.attention.output, context, ATTENTION, paths, drops)
        stream, _ = self.attention_norm(attended, stream)
        stream, _ = self.mlp_norm(self.mlp(stream, paths, drops), stream)
        return stream, None


def branch_of(
    last: FoldingLinear, hidden: Tensor, place: int, paths: Tensor | None, drops: HiddenDropout | None
) -> Branch:
    """Applies the last layer of a sublayer, and thins the result as at its place: [T f] -> [T d].

    What is thinned has another gradient than the layer's result, so that the layer sums that of its bias.
    """
    if paths is None and drops is None:
        return Branch(*last.unsummed(hidden))
    return Branch(thinned(last(hidden), place, paths, drops))


def thinned(added: Tensor, place: int, paths: Tensor | None, drops: HiddenDropout | None) -> Tensor:
    """Applies dropout and stochastic depth to what a place of hidden_dropout.py adds: [T d] -> [T d].

    Stochastic depth has attention and MLP alone.
    """
    if drops is not None:
        added = drops(added, place)
    return added if paths is None else added * paths[place, :, None]


class Transformer(nn.Module):
    """A stack of blocks; the encoder that owns it also owns the final LayerNorm of pre-norm blocks.

    With `post_norm` the last block's output is normalised already. `block` is another kind of block; those
    of layers/cross_attention.py read `memory` too.

    Shapes:
        packed.hidden  [T d] -> [T d], or [k d] with rows [k]: the last block finishes only these
        paths          [L 2 T]  of the L blocks, see Block
    `drops` is of all T rows.
    """

    def __init__(
        self,
        shape: TransformerShape,
        *,
        causal: bool = False,
        activation: str = "gelu",
        post_norm: bool = False,
        block: type[Block] | None = None,
        drops_inside: bool = False,
    ):
        super().__init__()
        block = block or (PostNormBlock if post_norm else Block)
        blocks = [block(shape, causal=causal, activation=activation) for _ in range(shape.num_hidden_layers)]
        for own in blocks:
            own.drops_inside = drops_inside
        self.blocks = nn.ModuleList(blocks)
        self.activation_checkpointing = False
        self.checkpoint_sums = False
        """Keep the sum of stream and branch at a checkpoint instead of both."""

    def forward(
        self,
        packed: Packed,
        *,
        equal_lengths: bool = False,
        rows: Tensor | None = None,
        paths: Tensor | None = None,
        drops: HiddenDropout | None = None,
        memory: Packed | None = None,
    ) -> Tensor:
        stream: Tensor = packed.hidden
        branch: Branch | None = None
        read = () if memory is None else (memory,)
        checkpointing = self.activation_checkpointing and self.training
        for number, block in enumerate(self.blocks, start=1):
            if checkpointing and self.checkpoint_sums and branch is not None:
                stream, branch = branch.onto(stream), None
            kept = rows if number == len(self.blocks) else None
            own = None if paths is None else paths[number - 1]
            bounds = packed.cu_seqlens, packed.max_seqlen, equal_lengths
            arguments = (*bounds, kept, own, None if drops is None else drops.of(number), *read)
            if checkpointing:
                parts = (None, None) if branch is None else branch
                stream, branch = checkpoint(_run, block, stream, *parts, *arguments, use_reentrant=False)
            else:
                stream, branch = block(stream, branch, *arguments)
        return stream if branch is None else branch.onto(stream)


def _run(
    block: Block, stream: Tensor, rows: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Branch | None]:
    """Runs a block on a branch in parts: a checkpoint saves what it is given, not what lies inside of it."""
    return block(stream, None if rows is None else Branch(rows, bias), *others)


@dataclass(frozen=True)
class Encoded:
    """One view's output before the final LayerNorm, which is applied only to the rows that are read.

    After post-norm blocks, `final_norm` is nn.Identity.

    Shapes:
        packed.hidden  [T d]  every row; or [k d], only the requested rows
        kept_rows      [k]    the requested rows, sorted; None if all are present
    """

    packed: Packed
    final_norm: nn.Module
    kept_rows: Tensor | None = None

    def last_hidden_state(self) -> Tensor:
        """Returns every row after the final LayerNorm: [T d]."""
        if self.kept_rows is not None:
            raise AssertionError("this view was encoded for some rows only")
        return self.final_norm(self.packed.hidden)

    def rows(self, rows: Tensor) -> Tensor:
        """Returns the chosen rows after the final LayerNorm: [k] -> [k d].

        If the view was encoded for some rows only, they must be among these.
        """
        if self.kept_rows is not None:
            rows = torch.searchsorted(self.kept_rows, rows)
        return self.final_norm(self.packed.hidden.index_select(0, rows))

    def first(self) -> Tensor:
        """Returns each sequence's CLS after the final LayerNorm: [b d]."""
        return self.rows(self.packed.first_rows)


def encode_versions(
    transformer: Transformer,
    final_norm: nn.Module,
    hidden: Tensor,
    layout: tuple[Tensor, int],
    keep: Sequence[Tensor | None],
    *,
    equal_lengths: bool = False,
    paths: Tensor | None = None,
    drops: HiddenDropout | None = None,
) -> list[Encoded]:
    """Encodes several versions of the same sequences, concatenated, in one packed call.

    Shapes:
        hidden   [len(keep)*T d]
        layout   cu_seqlens [b+1] of one version, and the longest sequence
        keep     for each version, the rows that will be read, sorted: [k] within the version; None for all
        paths    [L 2 len(keep)*T]  see Block; None for 1
        drops    of len(keep)*T rows; None for none
        returns  one Encoded for each version
    """
    cu_seqlens, max_seqlen = layout
    total = hidden.shape[0] // len(keep)
    repeated = torch.cat(
        [cu_seqlens[:1]] + [cu_seqlens[1:] + number * total for number in range(len(keep))]
    ).to(torch.int32)
    rows = None
    if any(kept is not None for kept in keep):
        everything = torch.arange(total, device=hidden.device)
        rows = torch.cat(
            [(everything if kept is None else kept) + number * total for number, kept in enumerate(keep)]
        )
    packed = Packed(hidden, repeated, max_seqlen)
    encoded = transformer(packed, equal_lengths=equal_lengths, rows=rows, paths=paths, drops=drops)
    parts = encoded.split([total if kept is None else kept.shape[0] for kept in keep])
    return [
        Encoded(Packed(part, cu_seqlens, max_seqlen), final_norm, kept)
        for part, kept in zip(parts, keep, strict=True)
    ]


class Pooler(nn.Module):
    """Dense and tanh over the CLS.

    Shapes:
        first  [b d] -> [b d]
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return self.dense(first).tanh()


def frozen_pooler(hidden_size: int, wanted: bool) -> Pooler | None:
    """Returns an encoder's pooler, frozen: weight decay would shrink weights without a loss."""
    return Pooler(hidden_size).requires_grad_(False) if wanted else None


def at_least_fp32(x: Tensor) -> Tensor:
    """Converts half precision to fp32; leaves fp64, which reference computations use, unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def clamped(x: Tensor, most: float, least: float = 0.0) -> Tensor:
    """Clamps in fp32 or better, passing the gradient through: a plain clamp has no gradient outside of its
    range, so a parameter that overshot could never come back.
    """
    x = at_least_fp32(x)
    return x.detach().clamp(least, most) + (x - x.detach())
