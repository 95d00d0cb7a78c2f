"""flava_ds: FLAVA pre-training at scale with DeepSpeed.

`flava_ds.load(path)` opens a trained model; see docs/library.md. Importing the package imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flava_ds.api import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports the library on first use, because it imports torch."""
    if name in ("Model", "load"):
        from flava_ds import api

        return getattr(api, name)
    raise AttributeError(f"module 'flava_ds' has no attribute '{name}'")
