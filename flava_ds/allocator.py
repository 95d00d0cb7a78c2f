"""Tunes the C library's allocator, so that CPU memory is reused from step to step and batch to batch."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_LARGEST = (2**30, 2**25)
"""Blocks up to this size are served from freed memory; glibc before 2.35 accepts at most 32 MiB."""


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory instead of returning it to the kernel.

    Returns False if the C library cannot, or the user has tuned it already.

    A step frees its activations, and the next one allocates as much again. By default, glibc returns every
    block of 32 MiB or more, and the end of the heap, to the kernel each time and gets it back page by page,
    with a fault and zeroing: 50,000 faults and a tenth of the time of a pair step at width 192. Loader
    processes lose up to a tenth of their time in the same way, with the decoded images of every batch. The
    peak stays the same, but the process keeps it between steps and afterwards. PyTorch treats GPU memory the
    same way.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in tunables:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None
        and any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
        and bool(mallopt(_TRIM_THRESHOLD, -1))
    )
