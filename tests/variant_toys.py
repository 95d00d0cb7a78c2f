"""A toy configuration with variants at every kind of position: a section, an optional one, and the values of
a mapping.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flava_ds.config.variants import Variant


@dataclass(frozen=True, kw_only=True)
class Mover(Variant, built_in={"adam": "variant_toys:Adam", "late": "variant_toys_late:Late"}):
    """Moves parameters."""

    lr: float = 1e-3
    """Size of a step."""


@dataclass(frozen=True, kw_only=True)
class Adam(Mover, type="adam"):
    """Two moments."""

    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Momentum(Mover, type="momentum"):
    """One moment; in no table."""

    lr: float = 1e-2
    betas: float = 0.9
    """Of another type than Adam's."""
    decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Loss(Variant):
    """A term of the sum; every variant is defined here."""

    weight: float = 1.0
    """Factor in the sum."""


@dataclass(frozen=True, kw_only=True)
class Masked(Loss):
    """Predicts what a mask hides; no variant itself."""

    share: float = 0.15


@dataclass(frozen=True, kw_only=True)
class MaskedWords(Masked, type="mlm"):
    """Words."""

    whole_word: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskedPatches(Masked, type="mim"):
    """Patches."""

    codes: int
    """Has no default."""


@dataclass(frozen=True, kw_only=True)
class Contrast(Loss, type="contrast"):
    """Pairs."""

    temperature: float = 0.07


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A toy run."""

    name: str
    mover: Mover = field(default_factory=Adam)
    teacher: Mover | None = None
    losses: dict[str, Loss] = field(default_factory=dict)
    masked: Masked = field(default_factory=MaskedWords)
    shares: dict[str, float] = field(default_factory=dict)


def toy_tree() -> Tree:
    """Returns what a recipe would."""
    return Tree(
        name="toy",
        mover=Adam(lr=0.5),
        losses={"mlm": MaskedWords(), "pair_loss": Contrast(weight=2.0)},
        shares={"a": 1.0},
    )
