"""Where a run may write: in one folder below logging.run_directory, and in one of the same name below
checkpoint.directory.

A name comes from a command line or from a config.json that somebody else wrote, and must not lead out of
either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flava_ds.errors import ConfigError

if TYPE_CHECKING:
    from flava_ds.config.tree import Config

MOST_BYTES = 200
"""Of one part of a name: file systems take 255, and names of files are made of it."""


def check_run_folder(config: Config) -> None:
    """Raises ConfigError for a name that leads out of the folder of the runs, or that no file system takes,
    and for an empty folder.
    """
    _check_text("name", config.name)
    for part in config.name.split("/"):
        if part in ("", ".", ".."):
            raise ConfigError(
                f"name is {config.name!r:.200}; give the name of the run's folder below "
                "logging.run_directory, without '..' and not absolute"
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
        if not folder.removeprefix("file://"):
            raise ConfigError(
                f"{field} is {folder!r}, which names no folder; give one, '.' for the working directory"
            )


def _check_text(field: str, text: str) -> None:
    """Raises ConfigError for characters that no file name has, and for those that spoil a line of the log."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{field} is {text!r:.200}, which is no UTF-8") from error
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ConfigError(f"{field} is {text!r:.200}; control characters and line ends cannot stand in it")
