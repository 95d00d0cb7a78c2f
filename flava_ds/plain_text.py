"""The one way in which text of others reaches a console, a log or a saved file: without what a terminal would
obey, and without the secrets that URLs carry.
"""

from __future__ import annotations

import logging
import re
from typing import Any

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/@'\"<>]*@)?([^\s?'\"<>)]*)(\?[^\s'\"<>)]*)?")
_HALF = 1000
"""What is shown of a longer message's beginning, and of its end, where the way out stands."""
_NAMES_USERS = ("sftp://", "ssh://", "scp://", "ftp://")
"""Protocols whose URLs have to say who asks: of those, the password alone is left out."""


def without_secrets(text: str) -> str:
    """Cuts out of the URLs in a text what may be a signature or a password: queries, users and passwords."""
    return _URL.sub(_cut, text) if "://" in text else text


def _cut(match: re.Match[str]) -> str:
    protocol, user, place, _ = match.groups()
    user = (user or "").partition(":")[0].rstrip("@")
    return f"{protocol}{user}@{place}" if user and protocol.lower() in _NAMES_USERS else f"{protocol}{place}"


def public(value: Any) -> Any:
    """Returns plain JSON types without the secrets of the URLs in them."""
    if isinstance(value, dict):
        return {key: public(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [public(entry) for entry in value]
    return without_secrets(value) if isinstance(value, str) else value


def escaped(text: str, keep: str = "") -> str:
    """Spells out what is not printable; an escape would move a terminal's cursor, or worse."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def one_line(text: str) -> str:
    """Returns a message as a console takes it: one line of some length, escaped, without secrets."""
    line = escaped(without_secrets(" ".join(text.split())))
    return line if len(line) <= 2 * _HALF else f"{line[:_HALF]} ... {line[-_HALF:]}"


class PlainFormatter(logging.Formatter):
    """Formats records so; those of an exception keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the text of a record."""
        return escaped(without_secrets(super().format(record)), keep="\n")


def log_to_console() -> None:
    """Prints the messages of a command, as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
