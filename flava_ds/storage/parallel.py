"""One function over many arguments, several at once, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from flava_ds.errors import DataError


def for_each(
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    *,
    workers: int,
    threads: bool,
    label: str,
    unit: str,
) -> list[Any]:
    """Returns function(*entry) of every entry, in order; runs on `workers` threads or processes, or in place
    when there is one worker.

    The first error ends it: what has not begun is left out.

    Raises: DataError when a process dies, besides what the function raises.
    """
    with tqdm(total=len(arguments), desc=label, unit=unit, disable=None) as bar:
        if min(workers, len(arguments)) <= 1:
            results = []
            for entry in arguments:
                results.append(function(*entry))
                bar.update()
            return results
        # the caller may have threads and a device, which a fork does not survive
        context = multiprocessing.get_context("spawn")
        with (
            ThreadPoolExecutor(workers)
            if threads
            else ProcessPoolExecutor(min(workers, len(arguments)), mp_context=context) as pool
        ):
            jobs = [pool.submit(function, *entry) for entry in arguments]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise DataError(
                    f"{label}: a process died, perhaps for lack of memory; start again with fewer "
                    "processes, what is done is kept"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [job.result() for job in jobs]
