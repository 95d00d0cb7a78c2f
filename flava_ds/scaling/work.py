"""What a step costs as a function of its micro-batch: operators, bytes and parameters, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Amount:
    """A number that depends on the micro-batch: fixed + each * b + pair * b * g.

    `b` counts the micro-batch's samples and `g` the samples that a pooled loss sees, over all ranks.
    """

    fixed: float = 0.0
    each: float = 0.0
    pair: float = 0.0

    def at(self, b: float, g: float | None = None) -> float:
        """Returns the number for a micro-batch of `b` samples, pooled over `g` (default: `b`)."""
        return self.fixed + self.each * b + self.pair * b * (b if g is None else g)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.fixed + other.fixed, self.each + other.each, self.pair + other.pair)

    def times(self, factor: float) -> Amount:
        """Returns a multiple."""
        return Amount(self.fixed * factor, self.each * factor, self.pair * factor)


SQUARE = 0.02
"""How near to b^2 a number must grow to count as one of pairs of samples."""


def fitted(small: tuple[int, float], large: tuple[int, float]) -> Amount:
    """Returns the amount that takes two values at two micro-batches.

    A value that grows as the square of the batch compares every sample with every other one.
    """
    (b0, v0), (b1, v1) = small, large
    if v0 > 0 and abs(v1 / v0 / (b1 / b0) ** 2 - 1) < SQUARE:
        return Amount(pair=v0 / b0**2)
    each = (v1 - v0) / (b1 - b0)
    return Amount(v0 - each * b0, each)


@dataclass(frozen=True)
class Operator:
    """Calls of one operator with the same shapes in a micro-step.

    `rows`, `columns` and `inner` are the edges of its matrix product; without one they are None.
    """

    name: str
    phase: str
    """"forward" or "backward"; with activation checkpointing, the backward pass repeats the forward pass."""
    custom: bool
    """One of our own operators, which costs the host more."""
    count: int
    flops: Amount
    bytes: Amount
    """Read and written by one call if each tensor passes through memory once."""
    rows: Amount | None = None
    columns: Amount | None = None
    inner: Amount | None = None

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product, which the tensor cores do."""
        return self.rows is not None


@dataclass(frozen=True)
class KindWork:
    """A micro-step of one kind."""

    kind: str
    source: str
    operators: tuple[Operator, ...]
    parts: Mapping[str, Amount]
    """FLOPs of the forward pass by encoder and objective, as the family counts them."""
    saved: Amount
    """Bytes kept for the backward pass."""
    peak: Amount
    """Most bytes of activations at once, temporaries of either pass included, gradients of weights not."""
    peak_with_gradients: Amount
    """The same with the gradients that are there by then."""
    batch_bytes: Amount
    """Bytes of a micro-batch on the device."""
    exchanged: Mapping[str, Amount] = field(default_factory=dict)
    """Pooled objective -> bytes gathered over all ranks, as an amount of the global batch g."""
    codebook_flops: Amount = Amount()
    """Of the frozen codebook, forward only."""
    features_share: float = 0.0
    """Forward FLOPs of the first of two passes that pooled losses need under accumulation, as a share of a
    forward pass."""
    length_deviation: float = 0.0
    """Standard deviation of its text lengths, in tokens."""
    token_share: float = 0.0
    """Share of a sample's FLOPs that one more token adds."""
    has_pictures: bool = False
    """Whether the loader decodes pictures for it."""

    @property
    def model_flops(self) -> Amount:
        """Forward and backward without recomputation: three times the forward pass."""
        total = Amount()
        for amount in self.parts.values():
            total += amount
        return total.times(3)

    def flops(self) -> Amount:
        """All FLOPs that the operators really do: recomputation and attention's fifth product included."""
        total = Amount()
        for operator in self.operators:
            total += operator.flops.times(operator.count)
        return total


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that one set of kinds trains."""

    kinds: tuple[str, ...]
    elements: int
    tensors: tuple[int, ...]
    """Elements of each tensor."""


@dataclass(frozen=True)
class ModelWork:
    """All that a plan needs of a recipe."""

    recipe: str
    groups: tuple[ParameterGroup, ...]
    frozen: int
    """Elements that are not trained but stay on the device, without the codebook."""
    encoders: Mapping[str, int]
    """Trainable elements by child of the model, and of each objective's head as "head of NAME"."""
    codebook: int
    """Elements of the frozen codebook on the device; 0 without one."""
    kinds: Mapping[str, KindWork]
    """By source."""
    moments: int
    """Numbers that the optimizer keeps for each element."""

    @property
    def trainable(self) -> int:
        """Trainable elements."""
        return sum(group.elements for group in self.groups)

    def used_by(self, kind: str) -> int:
        """Elements that a step of `kind` gives a gradient."""
        return sum(group.elements for group in self.groups if kind in group.kinds)

    def tensors_used_by(self, kind: str) -> list[int]:
        """Elements of each tensor that a step of `kind` gives a gradient."""
        return [n for group in self.groups if kind in group.kinds for n in group.tensors]
