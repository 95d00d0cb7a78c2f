"""Fixtures that several test packages share."""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_processes
from told import Told

BEGUN = pytest.StashKey[float]()

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter_bf16

    interpreter_bf16.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what `make test TEST_FLAGS=--full` asks for, and what `make check` needs."""
    parser.addoption(
        "--full",
        action="store_true",
        help="compile every kernel and run every planted bug, unchanged ones too",
    )
    parser.addoption("--seconds", type=float, default=math.inf, help="skip what has not begun by then")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be absent
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out files so that a crash ends no more than its test."""
    from crashed_workers import SurvivingCrashes

    return SurvivingCrashes(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lets processes that share the files begin with those that take long, so that none is left with one at
    the end.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keeps to --seconds, counted from the first test; without -m, skips what cannot run in this process."""
    if not item.config.getoption("markexpr"):
        if item.get_closest_marker("triton") and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("needs TRITON_INTERPRET=1; make test sets it")
        if item.get_closest_marker("gpu") and not _has_gpu():
            pytest.skip("needs a CUDA device")
    begun = item.config.stash.setdefault(BEGUN, time.monotonic())
    if time.monotonic() - begun > item.config.getoption("--seconds"):
        pytest.skip("no time left for it in make check; make test runs it")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Lets a test draw the same numbers whatever has run before it in its process."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def indexed_demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in data, unpacked, with an index of every shard, as a first run in a folder leaves them."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.storage.index import load_indexes

    root = unpack(tmp_path_factory.mktemp("demo") / "data")
    for _ in load_indexes(sorted(root.rglob("*.tar"))):
        pass
    return root


@pytest.fixture
def demo_data(indexed_demo_data: Path, tmp_path: Path) -> None:
    """Puts the built-in data where a run of `flava_debug` in the test's folder would unpack and index them,
    which takes seconds. Not for tests that change shards: the files are links.
    """
    from flava_ds.recipes.demo import DATA

    shutil.copytree(indexed_demo_data, tmp_path / DATA, copy_function=os.link)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether what is unchanged since it was recorded runs all the same."""
    return request.config.getoption("--full")


@pytest.fixture
def told(record_property: Callable[[str, Any], None]) -> Iterator[Told]:
    """What a test measures, for a table; written into the JUnit XML if there is one."""
    noted = Told()
    yield noted
    noted.write(record_property)


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """`rank_processes.run_ranks` as a fixture."""
    return rank_processes.run_ranks
