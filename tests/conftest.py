"""Fixtures that several test packages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ranks


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """`ranks.run_ranks` as a fixture."""
    return ranks.run_ranks
