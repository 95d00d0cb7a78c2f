"""Two streams of layers that read each other, e.g. words and regions of an image, each of its own width.

Each stream first has layers to itself. Then come rounds: an exchange, in which each stream attends to the
other one's states, and another layer of each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flava_ds.batch import Packed
from flava_ds.layers.cross_attention import CrossAttention
from flava_ds.layers.fused import ACTIVATIONS, GELULinear, LinearGELU, ResidualLayerNorm
from flava_ds.layers.hidden_dropout import CROSS, MLP, HiddenDropout
from flava_ds.layers.transformer import PostNormBlock, Transformer, TransformerShape, branch_of

STREAMS = ("text", "regions")


class CrossLayer(nn.Module):
    """Attention to the other stream's states, residual, LayerNorm.

    `memory_size` and `width` are those of CrossAttention.

    Shapes:
        own    [T d] -> [T d]
        other  [M memory_size]
    """

    def __init__(
        self,
        shape: TransformerShape,
        num_heads: int,
        memory_size: int | None = None,
        width: int | None = None,
    ):
        super().__init__()
        d, eps = shape.hidden_size, shape.layer_norm_eps
        self.attention = CrossAttention(d, num_heads, memory_size=memory_size, width=width)
        self.attention_norm = ResidualLayerNorm(d, eps=eps)

    def forward(self, own: Packed, other: Packed, drops: HiddenDropout | None = None) -> Tensor:
        context = self.attention(own.hidden, own.cu_seqlens, own.max_seqlen, other)
        return self.attention_norm(branch_of(self.attention.output, context, CROSS, None, drops), own.hidden)[
            0
        ]


class CoAttentionLayer(CrossLayer):
    """The same, followed by an MLP, residual, LayerNorm."""

    def __init__(self, shape: TransformerShape, num_heads: int, memory_size: int, width: int):
        super().__init__(shape, num_heads, memory_size, width)
        d = shape.hidden_size
        self.mlp_up = ACTIVATIONS["gelu"](d, shape.intermediate_size)
        self.mlp_down = GELULinear(shape.intermediate_size, d)
        self.mlp_norm = ResidualLayerNorm(d, eps=shape.layer_norm_eps)

    def forward(self, own: Packed, other: Packed, drops: HiddenDropout | None = None) -> Tensor:
        stream = super().forward(own, other, drops)
        return self.mlp_norm(branch_of(self.mlp_down, self.mlp_up(stream), MLP, None, drops), stream)[0]

    def recompute_gelu(self, wanted: bool) -> None:
        """Keeps GELU's input alone instead of input and result, as Block does."""
        assert isinstance(self.mlp_up, LinearGELU)
        self.mlp_up.activates, self.mlp_down.activates = not wanted, wanted


class SharedExchange(nn.Module):
    """One attention layer serves both directions, with the same weights; both streams have one width.

    Source: Tan and Bansal 2019, LXMERT, section 2.2, and its code.
    """

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.both = CrossLayer(shape, shape.num_attention_heads)

    def forward(self, stream: str, own: Packed, other: Packed, drops: HiddenDropout | None = None) -> Tensor:
        """Returns the new states of `stream`, whose states are `own`."""
        return self.both(own, other, drops)


class CoAttention(nn.Module):
    """An attention layer with an MLP for each direction; all heads together have a width of their own.

    Source: Lu et al. 2019, ViLBERT, section 3.1, and its code.
    """

    def __init__(self, text: TransformerShape, regions: TransformerShape, num_heads: int, width: int):
        super().__init__()
        self.text = CoAttentionLayer(text, num_heads, regions.hidden_size, width)
        self.regions = CoAttentionLayer(regions, num_heads, text.hidden_size, width)

    def forward(self, stream: str, own: Packed, other: Packed, drops: HiddenDropout | None = None) -> Tensor:
        """Returns the new states of `stream`, whose states are `own`."""
        return getattr(self, stream)(own, other, drops)


class Round(nn.Module):
    """An exchange between the streams, then a post-norm block of each."""

    def __init__(self, exchange: nn.Module, text: TransformerShape, regions: TransformerShape):
        super().__init__()
        self.exchange = exchange
        self.text, self.regions = PostNormBlock(text), PostNormBlock(regions)

    def forward(
        self,
        text: Packed,
        regions: Packed,
        reads: Mapping[str, Tensor | None],
        drops: Mapping[str, tuple[HiddenDropout, HiddenDropout]],
    ) -> dict[str, Tensor]:
        """Returns the states of the streams in `reads`, which names the rows that their blocks finish.

        `drops` holds what exchange and block of a stream drop.
        """
        sides = {"text": (text, regions), "regions": (regions, text)}
        found = {}
        for stream, rows in reads.items():
            (own, other), block = sides[stream], getattr(self, stream)
            between, within = drops.get(stream, (None, None))
            crossed = self.exchange(stream, own, other, between)
            found[stream], _ = block(crossed, None, own.cu_seqlens, own.max_seqlen, False, rows, drops=within)
        return found


class TwoStreams(nn.Module):
    """Layers of each stream alone, as many as its shape says, and a round for each of `exchanges`."""

    def __init__(self, text: TransformerShape, regions: TransformerShape, exchanges: Sequence[nn.Module]):
        super().__init__()
        self.text = Transformer(text, post_norm=True)
        self.regions = Transformer(regions, post_norm=True)
        self.rounds = nn.ModuleList(Round(exchange, text, regions) for exchange in exchanges)
        self.activation_checkpointing = False

    def forward(self, text: Packed, regions: Packed, reads: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Encodes both and returns the streams in `reads`, e.g. {"text": rows}; see `meet`. Drops nothing."""
        return self.meet(self.alone("text", text), self.alone("regions", regions), reads)

    def alone(self, stream: str, packed: Packed, drops: HiddenDropout | None = None) -> Packed:
        """Runs the layers that a stream has to itself."""
        return replace(packed, hidden=getattr(self, stream)(packed, drops=drops))

    def meet(
        self,
        text: Packed,
        regions: Packed,
        reads: Mapping[str, Tensor | None],
        drops: Mapping[str, HiddenDropout] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the rounds over the states that `alone` returns.

        The last one computes nothing for a stream that is not in `reads`, and its blocks finish only the rows
        that are named, sorted. `drops` holds what is dropped of each stream; None for nothing.

        Shapes:
            text.hidden     [T d]
            regions.hidden  [O d']
            reads           stream -> [k], None for all rows
            returns         stream -> [k d], or [T d]; regions with d'
        """
        checkpointing = self.activation_checkpointing and self.training
        found: dict[str, Tensor] = {}
        for number, one in enumerate(self.rounds, start=1):
            wanted = reads if number == len(self.rounds) else dict.fromkeys(STREAMS)
            dropped = {
                stream: tuple(own.of(self.layers_before(stream, number) + part) for part in (1, 2))
                for stream, own in (drops or {}).items()
            }
            if checkpointing:
                found = checkpoint(one, text, regions, wanted, dropped, use_reentrant=False)
            else:
                found = one(text, regions, wanted, dropped)
            if number < len(self.rounds):
                text = replace(text, hidden=found["text"])
                regions = replace(regions, hidden=found["regions"])
        return found

    def layers_before(self, stream: str, number: int) -> int:
        """Returns how many layers of a stream come before a round, counted from 1; a round has two."""
        return len(getattr(self, stream).blocks) + 2 * (number - 1)

    def parameters_of(self, streams: Collection[str]) -> set[str]:
        """Returns the names of the parameters that get a gradient when `streams` do."""
        last = f"rounds.{len(self.rounds) - 1}."
        others = [stream for stream in STREAMS if stream not in streams]
        idle = (*(f"{last}{own}." for own in others), *(f"{last}exchange.{own}." for own in others))
        return {name for name, _ in self.named_parameters() if not name.startswith(idle)}
