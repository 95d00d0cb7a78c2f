"""Reads from afar that end: each is given a time, repeated after growing pauses when it fails or stalls, and
named when all attempts fail.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flava_ds.config import Config
from flava_ds.errors import DataError
from flava_ds.processes import within

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_QUERY = re.compile(r"\?[^\s'\"<>)]*")
_TRANSIENT_STATUS = (408, 425, 429)
"""Answers of the 400s that another attempt may change; the others are the server's last word."""


@dataclass(frozen=True, kw_only=True)
class ReadPolicy:
    """How long one read from afar may take, and how often it is repeated."""

    retries: int = 4
    timeout_s: float = 30.0
    seed: int = 0
    """Of the pauses' random part."""

    def wait_s(self, number: int, what: str) -> float:
        """Returns the pause after failed attempt `number`: 0.5, 1, 2, ... s, at most 30, times a factor in
        [0.5, 1.5) that depends on the seed, the process, what is read and the attempt, so that processes that
        failed together do not ask again together."""
        factor = 0.5 + random.Random(f"{self.seed} {os.getpid()} {what} {number}").random()
        return factor * min(_FIRST_WAIT_S * 2 ** (number - 1), _LONGEST_WAIT_S)


DEFAULT = ReadPolicy()


def policy_of(config: Config) -> ReadPolicy:
    """Returns what a run's configuration asks for."""
    return ReadPolicy(
        retries=config.data.read_retries, timeout_s=config.data.read_timeout_s, seed=config.seed
    )


class ShortRead(OSError):
    """Fewer bytes than were asked for."""


def call(
    url: str,
    method: str,
    policy: ReadPolicy,
    *,
    what: str = "",
    check: Callable[[Any], None] | None = None,
    **options: Any,
) -> Any:
    """Returns fsspec's `method` of what lies at `url`, after repeating it when it fails, stalls, or does not
    pass `check`.

    `what` tells a part for messages, such as "bytes 0 to 511 of ". `check` raises ShortRead for what another
    attempt may mend.

    Raises: DataError when the object does not exist, access is refused, the protocol's package is missing, or
    all attempts fail.
    """
    name, attempts = f"{what}'{without_query(url)}'", policy.retries + 1
    for number in range(1, attempts + 1):
        try:
            result = call_once(url, method, policy.timeout_s, **options)
            if check is not None:
                check(result)
            return result
        except DataError:
            raise
        except Exception as error:  # every protocol has errors of its own
            reason = _refusal(error)
            if reason is not None:
                raise DataError(f"{name} {reason}; check the address and the credentials") from error
            told = _told(error, policy.timeout_s)
            if number == attempts:
                raise DataError(
                    f"{name} cannot be read after {attempts} attempt{'s' * (attempts > 1)}: {told}; check "
                    "the network and the server, "
                    "or raise data.read_retries or data.read_timeout_s"
                ) from error
            wait = policy.wait_s(number, name)
            log.warning(
                "%s could not be read, attempt %d of %d: %s; again in %.1f s",
                name,
                number,
                attempts,
                told,
                wait,
            )
            time.sleep(wait)
    raise AssertionError("unreachable")


def call_once(url: str, method: str, timeout_s: float, **options: Any) -> Any:
    """Returns fsspec's `method` of what lies at `url`; a call that takes longer than `timeout_s` is given up.

    Raises: TimeoutError, DataError when the protocol cannot be used, and what the protocol raises.
    """
    fs, path = file_system(url)
    asynchronous = getattr(fs, f"_{method}", None) if getattr(fs, "async_impl", False) else None
    if asynchronous is not None:
        from fsspec.asyn import sync

        return sync(fs.loop, asynchronous, path, timeout=timeout_s, **options)
    return within(timeout_s, partial(getattr(fs, method), path, **options), name=f"read {path[:40]}")


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL, made for this process, and the path inside it. Raises: DataError
    when it is not available.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.split("://", 1)[0]
        raise DataError(f"'{without_query(url)}': protocol '{protocol}' cannot be used: {error}") from error


def without_query(text: str) -> str:
    """Cuts the queries of URLs, which may hold signatures, out of a text."""
    return _QUERY.sub("", text)


def _cause(error: Exception) -> Exception:
    """Returns the server's answer behind a missing file: fsspec calls every failure of an http HEAD or GET
    one, and keeps the answer as its cause.
    """
    answer = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return answer if isinstance(answer, Exception) else error


def _refusal(error: Exception) -> str | None:
    """Returns why another attempt is useless; None when it may help."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(cause, FileNotFoundError) or status == 404:
        return "does not exist"
    if isinstance(cause, PermissionError) or status in (401, 403):
        return "may not be read"
    if isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUS:
        return f"is refused by the server ({without_query(str(cause))})"
    return None


def _told(error: Exception, timeout_s: float) -> str:
    """Writes what went wrong, as one line without the queries of URLs."""
    cause = _cause(error)
    if isinstance(cause, TimeoutError) or type(cause).__name__ == "FSTimeoutError":
        return f"no answer within {timeout_s:g} s"
    return " ".join(without_query(f"{type(cause).__name__}: {cause}").split())
