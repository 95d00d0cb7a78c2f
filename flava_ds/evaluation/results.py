"""What tasks have found on a run, in its folder: the latest result of each, and those of other checkpoints or
samples.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import DataError
from flava_ds.storage.atomic import hold, write_json

RESULTS = "evaluations.json"
"""In a run's folder: task -> its latest result, with the other ones under OTHERS."""
OTHERS = "others"
TELL_APART = (
    *("weights", "step", "average", "precision", "protocol", "splits"),
    *("fingerprint", "fingerprints", "fine_tuning"),
)
"""In what results of a task differ that are kept side by side. One that is alike in all of it is replaced."""
READ_AGAIN = "read_again"
"""Says of a result that it had been worked out before."""
OF_THE_WORK = ("seconds", "device", "versions")
"""What a result says of how it was worked out."""
PATIENCE_S = 60
"""How long a process waits for others that write their results."""


def read_results(run_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns each task's results on a run, as plain JSON types, the latest first; empty if none has run.

    Raises: DataError if the file is damaged.
    """
    file = run_path / RESULTS
    if not file.is_file():
        return {}
    try:
        known = {task: [found, *found.pop(OTHERS, [])] for task, found in loads(read_small(file)).items()}
        if not all(isinstance(one, dict) for found in known.values() for one in found):
            raise ValueError("a result is no object")
        return known
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not readable ({error}); delete it, and evaluate again") from error


def write_results(run_path: Path, found: Mapping[str, dict[str, Any]]) -> Path:
    """Adds results to a run's file, replaced atomically, and waits for other processes that do. Returns its
    path.

    Raises: OSError; BlockingIOError, which is one, after PATIENCE_S.
    """
    file = run_path / RESULTS
    with _alone(file):
        known = read_results(run_path)
        for task, result in found.items():
            others = [other for other in known.get(task, ()) if _apart(other) != _apart(result)]
            before = [other for other in known.get(task, ()) if _apart(other) == _apart(result)]
            known[task] = [_as_worked_out(result, before), *others]
        written = {task: first | ({OTHERS: rest} if rest else {}) for task, (first, *rest) in known.items()}
        write_json(file, written)
    return file


def samples_of(facts: Mapping[str, Any]) -> str:
    """Says which samples a result is of: `20 of split test in /data/mine`; empty if its facts do not say."""
    if "folder" not in facts:
        return ""
    return f"{facts['samples']:,} of split {facts['split']} in {facts['folder']}"


def _as_worked_out(result: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a result with how it was worked out: if it was read again, in no time, like the one before."""
    if not result.get(READ_AGAIN) or not before:
        return result
    made = {name: before[0][name] for name in OF_THE_WORK if name in before[0]}
    return {name: value for name, value in result.items() if name != READ_AGAIN} | made


def _apart(result: Mapping[str, Any]) -> str:
    return json.dumps([result.get(name) for name in TELL_APART], sort_keys=True)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Lets no other process of any machine write the file meanwhile."""
    lock, until = file.with_name(f".{file.name}.lock"), time.monotonic() + PATIENCE_S
    while True:
        try:
            held = hold(lock)
            break
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                error.filename = str(file)  # which the user knows
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        held.close()
