"""A variant that the table of `variant_toys` names, in a module that is imported for it alone."""

from dataclasses import dataclass

from variant_toys import Mover


@dataclass(frozen=True, kw_only=True)
class Late(Mover, type="late"):
    """Comes when it is asked for."""

    delay: int = 3
