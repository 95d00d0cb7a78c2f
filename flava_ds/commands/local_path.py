"""Places on the command line that have to be folders or files of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

SHARDS = "folder, .tar or brace pattern"
"""What the actions of `flava-ds prepare` accept as shards."""


def local_path(text: str) -> Path:
    """Returns the path that an argument names; argparse prints the complaint about one that names none."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.200} is a URL; name a place on this machine")
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.200} names no file or folder")
    return Path(text)


def path_or_url(text: str) -> Path | str:
    """Returns the path that an argument names, or a URL as it is; file:// counts as a path."""
    text = text.removeprefix("file://")
    return text if "://" in text else local_path(text)


def report_path(text: str) -> Path:
    """Returns the path of a report or list to write, in a folder that is there; not one that a shell has put
    there for `*.tar`.
    """
    path = local_path(text)
    if path.suffix == ".tar":
        raise argparse.ArgumentTypeError(f"{text!r:.200} would be overwritten, and is named as a shard is")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{str(path.parent)!r:.200} is no folder; make it first")
    return path
