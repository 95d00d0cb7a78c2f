"""What must hold whatever a hostile input says: nothing runs, nothing outside its folder changes, it ends,
its memory is bounded, and what is said of it is one line of plain text.
"""

from __future__ import annotations

import ctypes
import io
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.errors import UserError
from flava_ds.storage.faults import SampleFault

MOST_CPU_S, MOST_MIB, MOST_ADDRESS_MIB = 20.0, 600, 8192
"""Processor time of a case and what its resident memory may grow by; and a limit of addresses, so that one
that would fill the machine fails instead.
"""
LONGEST_LINE = 4000
STATUSES = frozenset({0, 2})
"""What a command may end with that nothing disturbs: done, or something that the user can mend
(docs/faults.md).
"""

RUNS = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "pty.spawn"}
)
"""Audit events of which a case may raise none: CPython's own word that something is started or unpickled."""
CHANGES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
)
"""Audit events that change the file system at the path that they name."""


class Finding(Exception):
    """Something that must not happen; the words say which oracle noticed."""


@dataclass
class _Watch:
    """What audit events are compared with while a case runs."""

    folder: Path | None = None
    seen: str | None = None
    thread: int = 0


_watch = _Watch()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes the first event that a case must not raise."""
    folder = _watch.folder
    if folder is None or _watch.seen is not None or threading.get_ident() != _watch.thread:
        return
    if event in RUNS:
        _watch.seen = f"{event} {arguments!r:.200}"
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not _inside(arguments[0], folder):
            _watch.seen = f"writes {arguments[0]!r:.200}"
    elif event in CHANGES and isinstance(arguments[0], str | bytes | os.PathLike):
        if not _inside(arguments[0], folder):
            _watch.seen = f"{event} {arguments[0]!r:.200}"


def _inside(path: Any, folder: Path) -> bool:
    """Tells whether a path lies in the folder of the case, or is where output goes to nobody."""
    path = os.path.realpath(os.fsdecode(path))
    return path == "/dev/null" or Path(path).is_relative_to(folder)


def install() -> None:
    """Begins to listen to CPython's audit events; that cannot be undone, and costs little while no case
    runs.
    """
    if not getattr(install, "done", False):
        install.done = True  # type: ignore[attr-defined]
        sys.addaudithook(_audit)
        sys.dont_write_bytecode = True


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Holds a case to the oracles; `folder` is its own, and the canary's place is beside it.

    Raises: Finding.
    """
    install()
    outside = snapshot(folder.parent, folder)
    before_mib = _reset_peak()
    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, _ring)
    resource.setrlimit(resource.RLIMIT_AS, (_address_mib() + MOST_ADDRESS_MIB << 20, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    _watch.folder, _watch.seen, _watch.thread = folder.resolve(), None, threading.get_ident()
    try:
        yield
    except MemoryError as error:
        raise Finding(f"more than {MOST_ADDRESS_MIB} MiB of addresses") from error
    finally:
        _watch.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    if _watch.seen is not None:
        raise Finding(_watch.seen)
    if (grown := _peak_mib() - before_mib) > MOST_MIB:
        raise Finding(f"{grown} MiB of memory")
    if (now := snapshot(folder.parent, folder)) != outside:
        raise Finding(f"changed outside of its folder: {sorted(now.items() ^ outside.items())[:3]}")


def snapshot(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of all files below `folder` that are not in `but`."""
    found = {}
    for path in folder.rglob("*"):
        if path != but and but not in path.parents:
            stat = path.lstat()
            found[str(path)] = (stat.st_size, stat.st_mtime_ns)
    return found


def complaint(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Returns what a call returns, and None, or None and the message of its UserError or SampleFault.

    Raises: Finding for any other exception, and for a message that is not one line of plain text once a
    command has printed it.
    """
    try:
        return call(), None
    except (UserError, SampleFault) as error:
        return None, plain(str(error))
    except (Finding, MemoryError):
        raise
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {error!s:.300}") from error


def plain(message: str) -> str:
    """Returns a message as a command prints it. Raises: Finding when that is no short line of plain text."""
    from flava_ds.plain_text import one_line

    line = one_line(message)
    if not line.strip() or not line.isprintable() or len(line) > LONGEST_LINE:
        raise Finding(f"no line of plain text: {line!r:.300}")
    return line


def command(words: list[str]) -> int:
    """Runs `flava-ds WORDS` in this process and returns its status.

    Raises: Finding for a traceback, a status that is not documented, output that a terminal would obey, and
    an error of more or less than one line.
    """
    from flava_ds.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main(words)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except (Finding, MemoryError):
        raise
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {error!s:.300}") from error
    said = err.getvalue()
    if status not in STATUSES:
        raise Finding(f"status {status}: {said[-300:]!r}")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if len(errors) != (status != 0) or "Traceback" in said:
        raise Finding(f"status {status} with {len(errors)} lines of errors: {said[-300:]!r}")
    for text in (said, out.getvalue()):
        if not all(letter.isprintable() or letter in "\n\t" for letter in text):
            raise Finding(f"output that a terminal would obey: {text[:300]!r}")
    return status


def _ring(*_: Any) -> None:
    raise Finding(f"more than {MOST_CPU_S:g} s of processor time")


def _reset_peak() -> int:
    """Makes the peak of resident memory begin anew; returns what is resident now, in MiB. What is free goes
    back to the system first, or a case could take it without growing.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_mib() -> int:
    return _status("VmHWM")


def _address_mib() -> int:
    return _status("VmSize")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) >> 10
    return 0
