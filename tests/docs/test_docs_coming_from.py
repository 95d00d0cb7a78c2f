"""docs/coming_from.md names options that exist."""

import re
from pathlib import Path

from flava_ds.config.reference import reference

COMMANDS = ("to", "list", "images", "out")
"""Options of commands, which are no fields."""
PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"


def test_every_option_in_our_column_exists():
    known = set(re.findall(r"^\| `([\w.]+)`", reference(), re.MULTILINE)) | {
        "schedule",
        "name",
        "objectives.global_contrastive",
    }
    rows = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    ours = [option for row in rows for cell in row[2:] for option in re.findall(r"--([a-z][\w.-]+)", cell)]
    options = {option.replace("-", "_").rstrip("_.") for option in ours if option not in COMMANDS}
    assert len(options) > 30 and not {option for option in options if option not in known}
