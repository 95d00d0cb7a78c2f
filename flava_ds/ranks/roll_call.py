"""Names the ranks that do not answer when a collective fails, instead of ending a hang with a traceback.

Every rank has a thread that waits for a question in the process group's store. A rank whose collective timed
out or lost its connection asks, and every live rank answers within milliseconds, whatever its main thread
does. Rank 0 serves the store and may be the one that hangs, so every wait for the store has a time limit.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist

from flava_ds.errors import first_of
from flava_ds.processes import machine, started, within
from flava_ds.ranks.distributed import ASKED, STORE_S, World, gather_objects, has_ended, learn_first_end

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection was likely closed",
)
"""Errors when another rank has ended: gloo's, and the store's when it is rank 0."""
TIMED_OUT = re.compile(
    r"Timed out waiting (\d+)\s?ms|Timeout\(ms\)=(\d+)|(?:Timed out|wait timeout) after (\d+)ms|Wait timeout"
)
"""gloo's, nccl's and the store's errors when another rank does not take part."""
ANSWER_S = 5.0
"""Seconds that a rank has to answer."""
FIRST_LOOK_S = 0.05
"""Seconds between the first two looks for answers; every later interval is twice the one before."""
SPENT, ANSWERS = f"{ASKED}/seconds", f"{ASKED}/answers"
NAMED = 8
"""Maximum number of ranks that a message names."""


@dataclass(frozen=True)
class Peer:
    """Where a rank runs.

    `machine` identifies a pid namespace; `began` tells the process from a later one with the same pid.
    """

    host: str
    pid: int
    machine: str
    began: int | None

    @classmethod
    def here(cls) -> Peer:
        """Returns the description of this process."""
        return cls(socket.gethostname(), os.getpid(), machine(), started(os.getpid()))


_peers: list[Peer] = []


def begin(world: World) -> None:
    """Learns where every rank runs and starts to answer roll calls; all ranks call it together."""
    _peers[:] = gather_objects(world, Peer.here())
    if world.size > 1:
        # a separate connection, because wait() blocks the one it uses
        store = cast(Any, dist.distributed_c10d._get_default_store()).clone()  # torch 2.13 has no type for it
        threading.Thread(target=_answer, args=(store, world.rank), name="roll call", daemon=True).start()


def explain(error: RuntimeError) -> str | None:
    """Returns a message that names the missing ranks; '' if another rank has already reported why it ends.

    Returns None for errors that are not about other ranks. Every rank whose collective failed calls this. It
    kills a hung rank on this machine, because the launcher would wait for it.
    """
    words, spent = str(error), TIMED_OUT.search(str(error))
    if not _peers or not (spent or any(lost in words for lost in LOST)):
        return None
    # a launcher that notices a dead rank terminates the others, perhaps before they could name it; so does a
    # user, whose Ctrl-C would end the question with a traceback
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    where = "".join(f" {note}" for note in getattr(error, "__notes__", []))
    if has_ended():
        return ""
    milliseconds = next((int(group) for group in spent.groups() if group), 0) if spent else 0
    try:
        store = dist.distributed_c10d._get_default_store()
        within(STORE_S, lambda: learn_first_end(store))
        if has_ended():
            return ""
        positions, seconds = _ask(store, dist.get_rank(), f"{milliseconds / 1000:g}" if spent else None)
    except (RuntimeError, TimeoutError):  # the store is gone or does not answer
        # rank 0 serves the store, so take it for the missing one
        present = [rank for rank in range(len(_peers)) if rank != 0 or rank == dist.get_rank()]
        positions = dict.fromkeys(present, "")
        seconds = f"{milliseconds / 1000:g}" if spent else None
    missing = [rank for rank in range(len(_peers)) if rank not in positions]
    elsewhere = {rank: position for rank, position in positions.items() if position}
    if seconds is not None:
        _end_hung([_peers[rank] for rank in missing])
    return _told(missing, elsewhere, seconds, where)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Adds a note with the location to a RuntimeError raised inside the block."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(where)
        raise


def _ask(store: Any, rank: int, seconds: str | None) -> tuple[dict[int, str], str | None]:
    """Returns the position of every rank that answers, and how many seconds any rank has waited.

    A position is '' for a rank inside a collective. The seconds are None if all ranks lost a connection.
    """
    if seconds is not None:
        within(STORE_S, lambda: store.set(SPENT, seconds))
    # also creates the value, so that get() does not wait for it
    within(STORE_S, lambda: store.append(ANSWERS, _answered(rank, "")))
    within(STORE_S, lambda: store.set(ASKED, "1"))
    deadline, interval = time.monotonic() + ANSWER_S, FIRST_LOOK_S
    while True:
        positions = _answers(within(STORE_S, lambda: store.get(ANSWERS)))
        left = deadline - time.monotonic()
        if len(positions) == len(_peers) or left <= 0:
            break
        time.sleep(min(interval, left))
        interval *= 2
    if within(STORE_S, lambda: store.check([SPENT])):
        seconds = within(STORE_S, lambda: store.get(SPENT)).decode()
    return positions, seconds


def _answered(rank: int, position: str) -> str:
    """Returns a rank's line in the value of all answers."""
    return f"{rank} {position}\n"


def _answers(lines: bytes) -> dict[int, str]:
    """Returns the position of every rank that has answered, in rank order; a rank's last line counts."""
    answers = (line.split(" ", 1) for line in lines.decode().split("\n")[:-1])
    positions = {int(rank): position for rank, position in answers}
    return {rank: positions[rank] for rank in sorted(positions)}


def _answer(store: Any, rank: int) -> None:
    """Waits for the question and answers with the main thread's position; ends with the store.

    A rank that ends with an error wakes it, too: rank 0 takes the store with it, so this one has to know.
    """
    try:
        store.wait([ASKED], timedelta(days=1000))
        learn_first_end(store)
        store.append(ANSWERS, _answered(rank, _position()))
    except RuntimeError:
        return


def _position() -> str:
    """Returns file, line and function of the main thread in this package; '' if it is in a collective."""
    frame, inside = sys._current_frames().get(threading.main_thread().ident or 0), ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "torch/distributed" in path.as_posix() or path.name in ("roll_call.py", "distributed.py"):
            return ""
        if not inside and "flava_ds" in path.parts:
            inside = f"{path.parent.name}/{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return inside


def _told(missing: list[int], elsewhere: dict[int, str], seconds: str | None, where: str) -> str:
    """Composes the message."""
    names = first_of([f"rank {rank} (host {_peers[rank].host})" for rank in missing], NAMED)
    again = "start the same command again to go on from the latest checkpoint"
    if missing and seconds is None:
        return (
            f"{names} ended without a word{where}, perhaps killed for lack of memory: the kernel's log of "
            f"that host tells; {again}"
        )
    if missing:
        verb, why = "has", "it hangs or its machine is gone"
        if len(missing) > 1:
            verb, why = "have", "they hang or their machines are gone"
        return f"{names} {verb} not answered for {seconds} s{where}: {why}; look there, then {again}"
    at = "; ".join(
        f"rank {rank} (host {_peers[rank].host}) is at {position}"
        for rank, position in list(elsewhere.items())[:NAMED]
    )
    if seconds is None:
        return (
            f"the connection between two ranks was lost{where}, though all processes are alive: look at "
            f"the network; {again}"
        )
    return (
        f"ranks have waited for {seconds} s for others{where}, though all processes are "
        f"alive{': ' * bool(at)}{at}; raise engine.communication_timeout_s if that may take so long, or "
        f"{again}"
    )


def _end_hung(peers: list[Peer]) -> None:
    """Kills this machine's hung processes among `peers`. SIGKILL, because stopped ones ignore the rest."""
    for peer in peers:
        if peer.machine == machine() and peer.began is not None and started(peer.pid) == peer.began:
            with suppress(OSError):
                os.kill(peer.pid, signal.SIGKILL)
