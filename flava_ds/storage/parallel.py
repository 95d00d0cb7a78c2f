"""A parallel map over threads or processes, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from flava_ds.errors import DataError


class ProgressBar(tqdm):
    """A bar that threads of this process draw.

    tqdm's own lock is a semaphore for other processes too. From Python 3.14 on, a rank that leaves without
    the interpreter's exit would leave it behind, with a warning.
    """


ProgressBar.set_lock(threading.RLock())


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
            except BrokenProcessPool as error:
                raise DataError(
                    f"{label}: a process died, perhaps out of memory; run it again with fewer "
                    "processes (finished work is kept)"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [job.result() for job in jobs]
