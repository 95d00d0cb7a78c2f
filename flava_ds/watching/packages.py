"""Optional packages that a configuration needs; without torch, so that a launch can ask first."""

from __future__ import annotations

import importlib.util

from flava_ds.config import Config
from flava_ds.errors import ConfigError


def check_packages(config: Config) -> None:
    """Raises ConfigError if a sink needs a package that is not installed."""
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "logging.wandb is on, but wandb is not installed; `pip install 'flava_ds[wandb]'`, or leave "
            "it off"
        )
