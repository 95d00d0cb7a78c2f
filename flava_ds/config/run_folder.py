"""Checks where a run may write: one folder below logging.run_directory, and one below checkpoint.directory.

The name may come from somebody else's config.json and must not lead out of either.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.config.tree import Config

MOST_BYTES = 200
"""Maximum length of one part of a name: file systems allow 255, and file names are derived from it."""


def check_run_folder(config: Config) -> None:
    """Raises ConfigError for a name that leaves the runs' folder or is invalid, and for an empty folder."""
    _check_text("name", config.name)
    for part in config.name.split("/"):
        if part in ("", ".", ".."):
            raise ConfigError(
                f"name is {config.name!r:.200}; give the name of the run's folder below "
                "logging.run_directory: relative, and without '..'"
            )
        if len(part.encode()) > MOST_BYTES:
            raise ConfigError(f"name has a part of {len(part.encode())} bytes; use at most {MOST_BYTES}")
    folders = {
        "logging.run_directory": config.logging.run_directory,
        "checkpoint.directory": config.checkpoint.directory,
    }
    for field, folder in folders.items():
        if folder is None:
            continue
        _check_text(field, folder)
        if field == "logging.run_directory" and "://" in folder:
            raise ConfigError(
                f"{field} is {folder!r:.200}; logs need a folder of this machine, checkpoint.directory alone "
                "may be a URL"
            )
        if not folder.removeprefix("file://"):
            raise ConfigError(
                f"{field} is {folder!r}, which names no folder; give one, '.' for the working directory"
            )


def check_home(recipe: str, config: Config, overrides: list[str]) -> None:
    """Refuses a config.json that lies in a run's folder and stands for another, as of a run that was copied
    or moved, unless an option says which folder is meant.

    Raises: ConfigError.
    """
    home, run = Path(recipe).parent, config.run_path
    options = {word.partition("=")[0].replace("_", "-") for word in overrides}
    if (
        Path(recipe).name != "config.json"
        or not (home / "checkpoints").is_dir()
        or options & {"--name", "--logging.run-directory"}
        or home.resolve() == run.resolve()
    ):
        return
    home = home.resolve() if home.name in ("", "..") else home
    words = ["--name", home.name]
    if home.parent.resolve() != Path(config.logging.run_directory).resolve():
        words += ["--logging.run-directory", str(home.parent)]
    raise ConfigError(
        f"{recipe}: lies in {home}, but is of the run in {run}; to go on in {home}, give "
        f"{shlex.join(words)}; for a run in {run}, {shlex.join(['--name', config.name])}"
    )


def _check_text(field: str, text: str) -> None:
    """Raises ConfigError for characters that a file name cannot have, or that would garble a log line."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{field} is {text!r:.200}, which is not valid UTF-8") from error
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ConfigError(f"{field} is {text!r:.200}; it cannot contain control characters or line breaks")
