"""The demo's measurements on held-out data, one module with a function `measure` per kind of measurement.

Metrics are named '<measurement>/<set>/<what>'. Accuracies and recalls are shares in [0, 1]; a name that
ends in '_nats' is a mean cross-entropy. The suffixes '/chance' and '/pixel_1nn' mark a metric's reference
values.
"""

from __future__ import annotations

from collections.abc import Callable

from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.evaluation.frozen_model import FrozenModel

Measurement = Callable[[FrozenModel, Inputs], dict[str, float]]
"""Returns the metrics; equal weights give equal results. Raises: Lacking without what it needs."""
CHANCE, PIXELS = "/chance", "/pixel_1nn"
"""Suffixes of a metric's reference values: guessing, and the nearest neighbour on raw pixels."""
