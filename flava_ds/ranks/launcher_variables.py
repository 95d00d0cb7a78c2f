"""The environment variables by which a launcher tells a process its place among the ranks."""

from __future__ import annotations

import os

from flava_ds.errors import UserError

OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
"""Open MPI's names for torch's variables. mpirun sets no address of rank 0."""
ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # no port is opened
}
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def complete() -> None:
    """Adopts the variables of mpirun, and sets those that a single process lacks.

    Raises: UserError when the launcher set only some of them, or they are no place among ranks.
    """
    if "RANK" not in os.environ:
        given = {name: theirs for name, theirs in OPEN_MPI.items() if theirs in os.environ}
        os.environ.update({name: os.environ[theirs] for name, theirs in given.items()})
    present = [name for name in NEEDED if name in os.environ]
    if "RANK" not in present and "WORLD_SIZE" not in present:
        os.environ.update(ALONE)
    elif os.environ.get("WORLD_SIZE") == "1" and os.environ.get("RANK", "0") == "0":
        for name, own in ALONE.items():
            os.environ.setdefault(name, own)
    elif len(present) < len(NEEDED):
        missing = ", ".join(name for name in NEEDED if name not in present)
        raise UserError(
            f"the launcher set {', '.join(present)} but not {missing}; start with `deepspeed`, "
            "`torchrun` or a script under launchers/"
        )
    _check_place()


def _check_place() -> None:
    """Raises UserError that names a variable which is no number, or not below the number of ranks."""
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    _number("LOCAL_RANK")
    if "LOCAL_WORLD_SIZE" in os.environ and _number("LOCAL_WORLD_SIZE") < 1:
        raise UserError("LOCAL_WORLD_SIZE is 0; unset it, or set it to the number of ranks of this machine")
    if rank >= size:
        raise UserError(
            f"RANK is {rank} and WORLD_SIZE is {size}; ranks count from 0 to WORLD_SIZE - 1: unset both if "
            "an earlier launcher has left them"
        )


def _number(name: str) -> int:
    """Returns a variable's number. Raises: UserError."""
    value = os.environ[name]
    if not (value.isascii() and value.isdecimal()):
        raise UserError(f"{name} is {value!r:.60}, which is no number; unset it, or have a launcher set it")
    return int(value)
