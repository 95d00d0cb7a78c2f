"""Runs cases: an input of a surface, in an empty folder beside a canary, held to the oracles."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.oracles import Finding, watched
from fuzz.surfaces import SURFACES

from flava_ds.data.decode import decoder

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Found:
    """An input that broke an oracle."""

    surface: str
    data: bytes
    words: str


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """Yields a folder with a canary, which the package's cache and the working directory are in."""
    decoder()  # what libraries write when they are loaded is no finding
    logs = logging.getLogger("flava_ds")
    level, kept, where = logs.level, dict(os.environ), os.getcwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        (folder / "canary").write_text("")
        os.environ["FLAVA_DS_CACHE"] = str(folder / "inside" / "cache")
        logs.setLevel(logging.CRITICAL)
        (folder / "elsewhere").mkdir()
        os.chdir(folder / "elsewhere")
        try:
            yield folder
        finally:
            os.chdir(where)
            os.environ.clear()
            os.environ.update(kept)
            logs.setLevel(level)


def run(surface: str, data: bytes, folder: Path) -> str | None:
    """Checks one input in a sandbox; returns what was found, or None."""
    inside = folder / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    try:
        with watched(inside):
            SURFACES[surface].check(inside, data)
    except Finding as finding:
        return str(finding)
    return None


def fuzz(
    surfaces: list[str], seed: int, *, seconds: float = 1e9, cases: int = 10**9
) -> tuple[list[Found], Counter[str]]:
    """Draws inputs of the surfaces in turn until the time or the number is over; returns what was found, each
    kind of it once, and the cases of every surface. The same seed draws the same inputs.
    """
    found: dict[tuple[str, str], Found] = {}
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    pools = {name: list(SURFACES[name].seeds()) for name in surfaces}
    with sandbox() as folder:
        for name in surfaces:
            for data in pools[name]:  # seeds have to pass as they are
                _note(found, name, data, run(name, data, folder))
        for number in range(cases):
            name = surfaces[number % len(surfaces)]
            if time.monotonic() > end:
                break
            draw = random.Random(f"{seed} {number}")
            data = draw.choice(pools[name])
            for _ in range(draw.choice([1, 1, 2, 3])):
                data = SURFACES[name].mutate(draw, data)
            _note(found, name, data, run(name, data, folder))
            counts[name] += 1
    return list(found.values()), counts


def _note(found: dict[tuple[str, str], Found], name: str, data: bytes, words: str | None) -> None:
    """Keeps the shortest input of each kind of finding; findings that begin alike are one kind."""
    if words is None:
        return
    key = name, words[:60]
    if key not in found or len(data) < len(found[key].data):
        found[key] = Found(name, data, words)


def keep(found: Found, folder: Path = CORPUS) -> Path:
    """Writes an input into the corpus, under a name that its bytes give, unless it is there."""
    path = folder / found.surface / hashlib.sha256(found.data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.data)
    return path
