"""Small data for `flava-ds evaluate`, and the command as a user runs it."""

import json
from pathlib import Path

from evaluation.color_world import write_image_folder, write_own, write_sst2

from flava_ds.cli import main


def write_data(root: Path) -> Path:
    """Writes pictures in folders and in shards, and texts."""
    write_image_folder(root / "image_folder", {"train": 6, "test": 4})
    write_own(root / "own", {"test": 3})
    write_sst2(root, {"train": 30, "dev": 10})
    return root


def evaluated(capsys, *words):
    """Returns what the command writes to stdout, read as JSON, and to stderr."""
    assert main(["evaluate", *map(str, words)]) == 0
    told = capsys.readouterr()
    return json.loads(told.out), told.err
