"""Handles a standard output whose reader has gone."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress


def reader_is_gone() -> bool:
    """Returns whether nobody reads standard output any more, as after `| head`; then silences it."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object in memory, or closed
        return False
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return True
