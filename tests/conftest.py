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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what `make test TEST_FLAGS=--full` asks for."""
    parser.addoption("--full", action="store_true", help="compile every kernel and run every planted bug, unchanged ones too")


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether what is unchanged since it was recorded runs all the same."""
    return request.config.getoption("--full")


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """`rank_processes.run_ranks` as a fixture."""
    return rank_processes.run_ranks
