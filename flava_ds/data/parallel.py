"""One function over many arguments, several at once, with a progress bar on a terminal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm


def for_each(function: Callable[..., Any], arguments: Sequence[tuple], *, workers: int, threads: bool, label: str, unit: str) -> list[Any]:
    """Returns function(*entry) of every entry, in order; runs on `workers` threads or processes, or in place when there is one worker.

    The first error ends it: what has not begun is left out.
    """
    with tqdm(total=len(arguments), desc=label, unit=unit, disable=None) as bar:
        if min(workers, len(arguments)) <= 1:
            results = []
            for entry in arguments:
                results.append(function(*entry))
                bar.update()
            return results
        context = multiprocessing.get_context("spawn")  # the caller may have threads and a device, which a fork does not survive
        with ThreadPoolExecutor(workers) if threads else ProcessPoolExecutor(min(workers, len(arguments)), mp_context=context) as pool:
            jobs = [pool.submit(function, *entry) for entry in arguments]
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [job.result() for job in jobs]
