"""A parallel map over threads or processes, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from flava_ds.errors import DataError
from flava_ds.processes import sign_of_life

AT_ONCE = 16
"""Requests at a time, of local files, too: they may be on the file system of a cluster."""


class ProgressBar(tqdm):
    """A bar that threads of this process draw.

    tqdm's own lock is a semaphore for other processes too. From Python 3.14 on, a rank that leaves without
    the interpreter's exit would leave it behind, with a warning.
    """


ProgressBar.set_lock(threading.RLock())


Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(
    make: Callable[[Given], Made], given: Sequence[Given], *, threads: int, most: int
) -> Iterator[Made]:
    """Yields `make` of every entry in order, at most `most` of them computed ahead by threads."""
    if threads == 1 or len(given) <= 1:
        yield from map(make, given)
        return
    with ThreadPoolExecutor(threads) as pool:
        jobs: deque[Future[Made]] = deque()
        try:
            for entry in given:
                jobs.append(pool.submit(make, entry))
                if len(jobs) > most:
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            for job in jobs:
                job.cancel()


def for_each(
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    *,
    workers: int,
    threads: bool,
    label: str,
) -> list[Any]:
    """Returns function(*entry) of every entry, in order.

    Runs on `workers` threads or processes, or in the calling thread when there is one worker. The first error
    ends it: calls that have not started are cancelled.

    Raises: DataError when a process dies, and whatever `function` raises.
    """
    with ProgressBar(total=len(arguments), desc=label, unit="shard", disable=None) as bar:
        if min(workers, len(arguments)) <= 1:
            results = []
            for entry in arguments:
                results.append(function(*entry))
                bar.update()
                sign_of_life()
            return results
        # spawn: the caller may have threads and a device, which do not survive a fork
        context = multiprocessing.get_context("spawn")
        pool = (
            ThreadPoolExecutor(workers)
            if threads
            else ProcessPoolExecutor(min(workers, len(arguments)), mp_context=context)
        )
        with pool:
            jobs = [pool.submit(function, *entry) for entry in arguments]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update()
                    sign_of_life()
            except BrokenProcessPool as error:
                raise DataError(
                    f"{label}: a process died, perhaps out of memory; run it again with fewer "
                    "processes (finished work is kept)"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [job.result() for job in jobs]
