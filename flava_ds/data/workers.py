"""Detects dataloader workers that die or hang, names them, and ends the run within seconds."""

from __future__ import annotations

import atexit
import errno
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flava_ds.allocator import keep_freed_memory
from flava_ds.errors import DataError
from flava_ds.processes import listen, state_of

_TIME = struct.Struct("d")
_signs: mmap.mmap | None = None
"""In a loader process: the times of the latest signs of life of all, in memory shared with the trainer."""
_END = object()
_LATER_S = 1.0
_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_REFUSED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS)
_MEMORY = "it may have run out of memory: lower data.num_workers or data.prefetch_batches"
_ADVICE: dict[int, str] = {
    signal.SIGKILL: _MEMORY,
    signal.SIGBUS: (
        "memory for batches may have run out: lower data.prefetch_mib; if the log says that they travel "
        "more slowly, enlarge /dev/shm"
    ),
    signal.SIGSEGV: (
        "a native library crashed; data.num_workers 0 reads in the trainer's process and shows where"
    ),
}
_STATES = {
    "T": "it is stopped by a signal: continue it (kill -CONT), or start again",
    "t": "a debugger holds it",
    "D": "it waits for a disk or network file system that does not answer: look at the storage of the shards",
    "R": (
        "it is busy: the storage or this machine is too slow, or one sample takes very long; raise "
        "data.worker_timeout_s if batches take that long"
    ),
    "S": "it waits, for storage or another process; raise data.worker_timeout_s if batches take that long",
}
"""Advice by a worker's state in /proc, ordered by how likely a worker in that state causes the hang."""


def watched(loader: DataLoader) -> Iterator[Any]:
    """Yields a loader's results in order.

    Raises: DataError that names the worker that died, or that sent nothing and gave no sign of life for
    `loader.timeout` seconds, or says why they cannot be started; kills the other workers first.
    """
    if not loader.num_workers:
        yield from loader
        return
    signs = mmap.mmap(-1, loader.num_workers * _TIME.size)  # shared, as the workers are forked
    results = _started(loader, signs)
    # Python's exit would ask the workers to end by SIGTERM, which they ignore, and wait for them forever
    end_all = atexit.register(partial(_end_all, results._workers))
    try:
        yield from _results(results, loader.timeout, signs)
    except BaseException:  # of torch, of the consumer, or by Ctrl-C
        _end_all(results._workers)
        _abandon(results)
        raise
    finally:
        atexit.unregister(end_all)


def _tell_trainer() -> None:
    """At a sign of life: the time after which this loader process counts as hung begins anew."""
    if (worker := get_worker_info()) is not None and _signs is not None:
        _TIME.pack_into(_signs, worker.id * _TIME.size, time.monotonic())


def _started(loader: DataLoader, signs: mmap.mmap) -> Any:
    """Starts a loader's workers, which write into `signs`.

    Raises: DataError, with none left, when the system refuses one of them.
    """
    global _signs
    loader.check_worker_number_rationality()  # which warns, as iter() would
    results = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
    results._workers = []
    _signs = signs
    try:
        # it installs torch's SIGCHLD handler, which would raise wherever the trainer is, even within a step
        with _handling(signal.SIGCHLD), _blocked(_ASKED_TO_END):
            _MultiProcessingDataLoaderIter.__init__(results, loader)
    except BaseException as error:
        _end_all(results._workers)
        _abandon(results)  # its end would ask workers that were never started
        if getattr(error, "errno", None) not in _REFUSED and "start new thread" not in str(error):
            raise
        raise DataError(
            f"the {loader.num_workers} loader processes cannot be started ({error}); raise the limits of "
            "processes and files (ulimit -u, -n), make room in /dev/shm, or lower data.num_workers"
        ) from error
    return results


def _results(results: Any, timeout_s: float, signs: mmap.mmap) -> Iterator[Any]:
    """Yields what torch's iterator over several workers yields, and watches the workers meanwhile."""
    workers, received = results._workers, 0

    def awaited_lives() -> bool:
        (latest,) = _TIME.unpack_from(signs, received % len(workers) * _TIME.size)
        return latest > 0 and time.monotonic() - latest < timeout_s  # 0: it never gave one

    while True:
        try:
            with (
                _handling(signal.SIGCHLD, lambda *_: None if results._shutdown else _notice_dead(workers)),
                _alarm(timeout_s, awaited_lives),
            ):
                _notice_dead(workers)
                result = next(results, _END)
        except Exception as error:  # a worker that dies while it sends a batch causes all kinds of errors
            if (found := _dead_soon(workers)) is not None:
                raise _died(workers, *found) from error
            late = str(error).startswith("DataLoader timed out")
            if late and awaited_lives():
                continue
            if late or isinstance(error, TimeoutError):
                raise _hung(workers, received % len(workers), timeout_s) from error
            raise
        if result is _END:
            return
        received += 1
        yield result


def start_worker(_: int) -> None:
    """Limits a worker to one core, lets it keep the memory of decoded images for the next ones, passes its
    signs of life on, and ignores the signals that launchers and Slurm send to all processes.

    The trainer handles those: it needs batches for the step that it finishes, and then ends the loader.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    listen(_tell_trainer)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in _ASKED_TO_END:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED_TO_END)


@contextmanager
def _blocked(numbers: Collection[int]) -> Iterator[None]:
    """Holds signals back inside the block; processes started in it hold them back until they unblock them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handling(number: int, handler: Callable[..., None] | None = None) -> Iterator[None]:
    """Replaces a signal's handler inside the block, unless `handler` is None, and restores it afterwards.

    Only the main thread may set handlers; in other threads, torch's own check of its workers has to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    if handler is not None:
        signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


@contextmanager
def _alarm(timeout_s: float, extended: Callable[[], bool]) -> Iterator[None]:
    """Raises TimeoutError in the main thread a little after `timeout_s`; 0 disables it. Then, as often as
    `extended` returns True, it waits for the same time again.

    torch's own timeout does not cover the transfer of tensors, for which it contacts the worker. Uses a
    signal instead of processes.within because torch's iterator belongs to the thread that made it.
    """
    if not timeout_s or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        if not extended():
            raise TimeoutError
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _LATER_S)

    with _handling(signal.SIGALRM, ring):
        left, every = signal.setitimer(signal.ITIMER_REAL, timeout_s + _LATER_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, left, every)


class _LoaderProcessDied(Exception):
    """Ends the wait for a batch."""


def _notice_dead(workers: Sequence[BaseProcess]) -> None:
    """Raises _LoaderProcessDied when a worker has ended by a signal or with an error."""
    if _dead(workers) is not None:
        raise _LoaderProcessDied


def _dead(workers: Sequence[BaseProcess]) -> tuple[int, int] | None:
    """Returns number and exit code (negative: signal) of the first worker that ended by a signal or an error.

    WNOWAIT leaves the exit status for multiprocessing to collect: if a signal handler took it,
    multiprocessing would believe that the process never ends.
    """
    for number, worker in enumerate(workers):
        assert worker.pid is not None  # it was started
        try:
            found = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            code: int | None = None
            if found is not None:
                exited = found.si_code == os.CLD_EXITED
                code = found.si_status if exited else -found.si_status
        except ChildProcessError:
            code = worker.exitcode
        if code not in (None, 0):
            return number, code
    return None


def _dead_soon(workers: Sequence[BaseProcess]) -> tuple[int, int] | None:
    """Returns the result of _dead, waiting for one: a worker's connections break moments before it ends."""
    end = time.monotonic() + _LATER_S
    while (found := _dead(workers)) is None and time.monotonic() < end:
        time.sleep(0.01)
    return found


def _died(workers: Sequence[BaseProcess], number: int, code: int) -> DataError:
    """Returns the error that names a dead worker, after killing the others."""
    if code < 0:
        told = f"was killed by {signal.Signals(-code).name}"
        advice = _ADVICE.get(-code, "see the system's log")
    else:
        told, advice = f"ended with status {code}", "see its last lines above"
    _end_all(workers)
    return DataError(
        f"a loader process died: number {number} of {len(workers)} (pid {workers[number].pid}) {told}; "
        f"{advice}"
    )


def _hung(workers: Sequence[BaseProcess], awaited: int, timeout_s: float) -> DataError:
    """Returns the error for a hang, after killing the workers.

    Names a worker that is stopped or in uninterruptible sleep, or else the one whose batch is next.
    """
    states = [state_of(worker.pid) for worker in workers]
    stuck = [number for state in "TtD" for number, found in enumerate(states) if found == state]
    number = stuck[0] if stuck else awaited
    error = DataError(
        f"a loader process hangs: number {number} of {len(workers)} (pid {workers[number].pid}) has sent "
        f"no batch for {timeout_s:g} s (data.worker_timeout_s); {_STATES.get(states[number], _STATES['S'])}"
    )
    _end_all(workers)
    return error


def _abandon(results: Any) -> None:
    """Keeps torch's iterator from ending workers that have been killed: the event that tells them to end has
    a lock, and one that was killed while it looked at the event holds it for ever.
    """
    results._shutdown = True
    if hasattr(results, "_pin_memory_thread_done_event"):
        results._pin_memory_thread_done_event.set()
    for queue in getattr(results, "_index_queues", ()):
        queue.cancel_join_thread()
        queue.close()
    if getattr(results, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(results))
        results._worker_pids_set = False


def _end_all(workers: Sequence[BaseProcess]) -> None:
    """Kills the remaining workers. SIGKILL, because a worker may be stopped or wait for a dead one's lock."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
    for worker in workers:
        worker.join(timeout=1)  # one in uninterruptible sleep ends when its disk answers
