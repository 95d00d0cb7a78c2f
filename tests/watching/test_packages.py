"""Optional packages that a configuration needs."""

import dataclasses
import importlib.util

import pytest

from flava_ds.errors import ConfigError
from flava_ds.ranks.launch import check_inputs
from flava_ds.recipes.flava_debug import flava_debug
from flava_ds.watching.packages import check_packages


def test_a_missing_wandb_is_one_clear_error_before_anything_starts(monkeypatch):
    config = flava_debug()
    with_wandb = dataclasses.replace(config, logging=dataclasses.replace(config.logging, wandb=True))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest)
    )
    message = r"logging.wandb is on, but wandb is not installed; `pip install 'flava_ds\[wandb\]'`"
    for check in (check_packages, check_inputs):
        with pytest.raises(ConfigError, match=message):
            check(with_wandb)
    check_packages(config)
