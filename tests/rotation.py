"""What differs from commit to commit and is the same for everybody who tests one: samples of what is not run
every time are drawn by it.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def commit() -> str:
    """Returns the commit that is checked out; nothing outside of a git repository, where every run draws the
    same sample.
    """
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def draw(names: Iterable[str], seed: str) -> str:
    """Returns one of the names, each as likely as any other over many seeds."""
    return draw_some(names, seed, 1)[0]


def draw_some(names: Iterable[str], seed: str, number: int) -> list[str]:
    """Returns `number` of the names, or all if they are fewer."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())[:number]
