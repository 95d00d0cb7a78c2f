"""How the C library keeps the memory of a step on the CPU."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_LARGEST = (2**30, 2**25)
"""Blocks up to this size are taken from freed memory; glibc before 2.35 refuses more than 32 MiB."""


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees instead of giving it back to the kernel; tells whether the C
    library can, and the user has not tuned it.

    A step frees its activations and takes as many again in the next one. By glibc's defaults every block of
    32 MiB or more, and the end of the heap, goes back each time, and comes page by page with a fault and
    zeroes: 50,000 faults and a tenth of the time of a pair step at width 192. The peak is the same; between
    steps, and after them, the process stays at it. PyTorch keeps a GPU's memory likewise.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None
        and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
        and bool(mallopt(_TRIM_THRESHOLD, -1))
    )
