"""Remote reads with a timeout, retries with growing pauses, and an error that names the object."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flava_ds.config import Config
from flava_ds.errors import DataError, number_of
from flava_ds.plain_text import without_secrets
from flava_ds.processes import within

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_TRANSIENT_STATUS = (408, 425, 429)
"""4xx statuses that a retry may change; all others are final."""


@dataclass(frozen=True, kw_only=True)
class ReadPolicy:
    """How long one remote read may take, and how often it is retried."""

    retries: int = 4
    timeout_s: float = 30.0
    seed: int = 0
    """Seeds the random part of the pauses."""

    def wait_s(self, number: int, what: str) -> float:
        """Returns the pause after failed attempt `number`: 0.5, 1, 2, ... s, at most 30, times [0.5, 1.5).

        The random factor depends on the seed, the process, what is read and the attempt, so that processes
        that failed together do not retry together.
        """
        factor = 0.5 + random.Random(f"{self.seed} {os.getpid()} {what} {number}").random()
        return factor * min(_FIRST_WAIT_S * 2 ** (number - 1), _LONGEST_WAIT_S)


DEFAULT = ReadPolicy()


def policy_of(config: Config) -> ReadPolicy:
    """Returns the read policy of a configuration."""
    return ReadPolicy(
        retries=config.data.read_retries, timeout_s=config.data.read_timeout_s, seed=config.seed
    )


class ShortRead(OSError):
    """Fewer bytes than requested."""


def call(
    url: str,
    method: str,
    policy: ReadPolicy,
    *,
    what: str = "",
    check: Callable[[Any], None] | None = None,
    **options: Any,
) -> Any:
    """Returns the result of fsspec's `method` for `url`, retrying when it fails, stalls or fails `check`.

    `what` names the part in messages, such as "bytes 0 to 511 of ". `check` raises ShortRead for a result
    that a retry may fix.

    Raises: DataError when the object does not exist, access is refused, the protocol's package is missing, or
    all attempts fail.
    """
    name, attempts = f"{what}'{without_secrets(url)}'", policy.retries + 1
    for number in range(1, attempts + 1):
        try:
            result = call_once(url, method, policy.timeout_s, **options)
            if check is not None:
                check(result)
            return result
        except DataError:
            raise
        except Exception as error:  # each protocol raises its own errors
            reason = _refusal(error)
            if reason is not None:
                raise DataError(f"{name} {reason}; check the address and the credentials") from error
            told = _told(error, policy.timeout_s)
            if number == attempts:
                raise DataError(
                    f"{name} cannot be read after {number_of(attempts, 'attempt')}: {told}; check "
                    "the network and the server, or raise data.read_retries or data.read_timeout_s"
                ) from error
            wait = policy.wait_s(number, name)
            log.warning(
                "%s could not be read, attempt %d of %d: %s; retrying in %.1f s",
                name,
                number,
                attempts,
                told,
                wait,
            )
            time.sleep(wait)
    raise AssertionError("unreachable")


def call_once(url: str, method: str, timeout_s: float, *arguments: Any, **options: Any) -> Any:
    """Returns the result of fsspec's `method` for `url`, giving up after `timeout_s`.

    Protocols name the same argument differently: what a method needs is best given by position.

    Raises: TimeoutError, DataError when the protocol cannot be used, and whatever the protocol raises.
    """
    fs, path = file_system(url)
    asynchronous = getattr(fs, f"_{method}", None) if getattr(fs, "async_impl", False) else None
    if asynchronous is not None:
        from fsspec.asyn import sync

        return sync(fs.loop, asynchronous, path, *arguments, timeout=timeout_s, **options)
    return within(
        timeout_s, partial(getattr(fs, method), path, *arguments, **options), name=f"read {path[:40]}"
    )


def file_system(url: str) -> tuple[Any, str]:
    """Returns this process's fsspec file system for a URL, and the path inside it.

    Raises: DataError when it is not available.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (
        Exception
    ) as error:  # a missing package, a URL that says too little: every protocol has errors of its own
        protocol, told = url.split("://", 1)[0], " ".join(without_secrets(str(error)).split())
        raise DataError(f"'{without_secrets(url)}': protocol '{protocol}' cannot be used: {told}") from error


def _cause(error: Exception) -> Exception:
    """Returns the server's answer behind a FileNotFoundError.

    fsspec reports every failed http HEAD or GET as a missing file, with the answer as its cause.
    """
    answer = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return answer if isinstance(answer, Exception) else error


def _status(cause: Exception) -> object:
    """Returns the HTTP status of a server's answer, where aiohttp, Azure or botocore keep it; else None."""
    answer = getattr(cause, "response", None)
    said = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    kept = (getattr(cause, name, None) for name in ("status", "status_code"))
    return next(filter(None, kept), said.get("HTTPStatusCode"))


def _refusal(error: Exception) -> str | None:
    """Returns why a retry is useless; None when it may help."""
    cause = _cause(error)
    status = _status(cause)
    if isinstance(cause, FileNotFoundError) or status == 404:
        return "does not exist"
    if isinstance(cause, PermissionError) or status in (401, 403):
        return "may not be read"
    if isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUS:
        return f"is refused by the server ({without_secrets(str(cause))})"
    return None


def _told(error: Exception, timeout_s: float) -> str:
    """Describes an error in one line, without the queries of URLs."""
    cause = _cause(error)
    if isinstance(cause, TimeoutError) or type(cause).__name__ == "FSTimeoutError":
        return f"no answer within {timeout_s:g} s"
    return " ".join(without_secrets(f"{type(cause).__name__}: {cause}").split())
