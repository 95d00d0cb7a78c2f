"""A page's content about held-out data besides the tasks: numbers, and single samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HeldOut:
    """Filled in by the module that knows the data; the page only displays it.

    `headlines` and the `measures` of `sections` have set, what, value, text, chance, chance_text, pixels,
    pixels_text, share. `examples` has the template's by_caption, by_image, pictures, drawings, written,
    captions, glosses, and missing_parts: part -> why it is missing.
    """

    step: int | None
    """Number of steps at the time of evaluation; None if there was none."""
    headlines: list[Any] = field(default_factory=list)
    sections: list[Any] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    """Objective -> loss on held-out data, nats."""
    left_out: dict[str, str] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    examples: dict[str, Any] = field(default_factory=dict)
