"""Fixtures that several test packages share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import rank_processes

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter_bf16

    interpreter_bf16.install()


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """`rank_processes.run_ranks` as a fixture."""
    return rank_processes.run_ranks
