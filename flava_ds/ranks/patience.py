"""Work that some ranks do for all, and that may take longer than a collective waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flava_ds.processes import listen
from flava_ds.ranks.distributed import STORE_S, World, gather_numbers

Result = TypeVar("Result")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0
"""Between two exchanges; every pause is twice the one before."""


@dataclass
class _Progress:
    """How far this rank is: whether it has ended its work, and how many signs of life it has given."""

    ended: bool = False
    signs: int = 0

    def sign(self) -> None:
        """Counts one more."""
        self.signs += 1


def done_by_some(world: World, work: Callable[[], Result] | None, silence_s: float) -> Result | None:
    """Calls `work` on the ranks that pass it and returns its result there. All ranks call this together, and
    none returns before all have ended their work.

    They wait for as long as working ranks give signs of life (processes.py), however long that is. When there
    was none for `silence_s`, waiting ranks return; the next collective then names who is missing.

    Raises: what `work` raises; RuntimeError when a rank is gone.
    """
    if world.size == 1:
        return None if work is None else work()
    progress = _Progress(ended=work is None)
    if work is None:
        _exchange(world, progress, silence_s)
        return None
    errors: list[RuntimeError] = []

    def exchange() -> None:
        try:
            _exchange(world, progress, silence_s)
        except RuntimeError as error:  # raised below
            errors.append(error)

    # a daemon, as this rank may have to end while others do not answer
    thread = threading.Thread(target=exchange, name="patience", daemon=True)
    thread.start()
    stop_listening = listen(progress.sign)
    try:
        result = work()
    except BaseException:
        progress.ended = True
        thread.join(STORE_S)  # so that the others do not wait for what has failed
        raise
    finally:
        stop_listening()
    progress.ended = True
    thread.join()
    if errors:
        raise errors[0]
    return result


def _exchange(world: World, progress: _Progress, silence_s: float) -> None:
    """Tells the ranks of each other until all have ended, or no number has changed for `silence_s`.

    What ends it is in the numbers themselves, so it ends on all ranks alike.

    Raises: RuntimeError when a rank is gone.
    """
    heard: list[list[int]] = []
    since, late, pause = time.monotonic(), False, _FIRST_PAUSE_S
    while True:
        rows = gather_numbers(world, [progress.ended, late, progress.signs])
        if all(ended for ended, *_ in rows) or any(late for _, late, _ in rows):
            return
        if rows != heard:
            heard, since = rows, time.monotonic()
        late = time.monotonic() - since > silence_s
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
