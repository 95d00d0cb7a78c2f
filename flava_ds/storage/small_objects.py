"""Small objects, read and written whole."""

from __future__ import annotations

import logging
from pathlib import Path

from flava_ds.config.plain_files import MOST_BYTES, read_small
from flava_ds.errors import DataError
from flava_ds.plain_text import without_secrets
from flava_ds.storage.files import RemoteShard, Shard
from flava_ds.storage.retry import call, call_once

log = logging.getLogger(__name__)

OBJECT_STORAGE = ("s3://", "gs://", "gcs://", "abfs://", "az://", "memory://")
"""Protocols without folders, in which an object appears whole or not at all."""


def fetch(file: RemoteShard, most: int = MOST_BYTES) -> bytes:
    """Returns a whole small object of at most `most` bytes. Raises: DataError when it is not there, cannot be
    read, or is longer.
    """
    size = call(file.url, "info", file.policy).get("size")
    if isinstance(size, int) and size > most:
        raise DataError(f"'{file}' has {size} bytes, more than {most}; it is not what it is taken for")
    return (
        call(file.url, "cat_file", file.policy, start=0, end=most if size is None else size)
        if size != 0
        else b""
    )


def fetch_if_there(file: RemoteShard, most: int = MOST_BYTES) -> bytes | None:
    """Returns a whole small object that need not be there: asks once, and takes any refusal, or more than
    `most` bytes, for its absence.
    """
    try:
        size = call_once(file.url, "info", file.policy.timeout_s)["size"]
        if not isinstance(size, int) or not 0 < size <= most:
            return None
        return call_once(file.url, "cat_file", file.policy.timeout_s, start=0, end=size)
    # every protocol has errors of its own; storage without the right to list answers 403 for what is absent
    except Exception:
        return None


def read_if_there(file: Shard) -> bytes | None:
    """Returns the bytes of a small optional file, or None for a missing object.

    Raises: OSError for a local file that is missing or not a regular file.
    """
    return read_small(file) if isinstance(file, Path) else fetch_if_there(file)


def read_beside(shard: Shard, name: str) -> bytes | None:
    """Returns another small file of a shard's folder; None if it is not there.

    Raises: OSError for a local one that cannot be read.
    """
    if not isinstance(shard, Path):
        return fetch_if_there(shard.beside(name))
    file = shard.with_name(name)
    return read_small(file) if file.is_file() else None


def put(file: RemoteShard, data: bytes) -> bool:
    """Writes an object to plain object storage (a hub would turn the write into a commit).

    Returns False when the storage is of another type or refuses the write.
    """
    if not file.url.startswith(OBJECT_STORAGE):
        return False
    try:
        call_once(file.url, "pipe_file", file.policy.timeout_s, data)
    except Exception as error:  # each protocol raises its own errors
        log.info(
            "cannot write '%s' (%s: %s); it is kept only in the user's cache",
            file,
            type(error).__name__,
            without_secrets(str(error)),
        )
        return False
    return True
