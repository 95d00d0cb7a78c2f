"""Optional packages: whether those that are needed are installed, and what installs them; without torch, so
that a launch can ask first.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from importlib import metadata

from flava_ds.config import Config
from flava_ds.errors import ConfigError, UserError

NAMES = {"sklearn": "scikit-learn", "open_clip": "open_clip_torch"}
"""Of packages that are imported by another name than they are installed by."""


def check_packages(config: Config) -> None:
    """Raises ConfigError if a sink needs a package that is not installed."""
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "logging.wandb is on, but wandb is not installed; `pip install 'flava_ds[wandb]'`, or leave "
            "it off"
        )


def version() -> str:
    """Returns the version of flava_ds, which may run without being installed, through PYTHONPATH."""
    try:
        return metadata.version("flava_ds")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def missing_package(error: ModuleNotFoundError) -> str | None:
    """Says what installs a package that is not there; None if no extra of flava_ds does, or if a module is
    missing in a package that is there.
    """
    module = error.name or ""
    package = _plain(NAMES.get(module, module))
    extras = [extra for optional, extra in _optional() if optional == package]
    return f"{package} is not installed; {how_to_install(extras)}" if extras else None


def check_extra(extra: str) -> None:
    """Raises UserError if a package of an extra is not installed: better now than when work is done."""
    for package in (package for package, its in _optional() if its == extra):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise UserError(f"{package} is not installed; {how_to_install([extra])}") from None


def how_to_install(extras: list[str]) -> str:
    """Returns the command that installs one of some extras."""
    return " or ".join(f"`pip install 'flava_ds[{extra}]'`" for extra in extras)


def _optional() -> Iterator[tuple[str, str]]:
    """Yields the packages of the extras for users, as pairs of names; none if flava_ds is not installed."""
    try:
        lines = metadata.requires("flava_ds") or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        found = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if found and found[2] != "dev":
            yield _plain(found[1]), found[2]


def _plain(package: str) -> str:
    """Returns a package's name as all of its spellings are compared."""
    return re.sub(r"[-_.]+", "-", package).lower()
