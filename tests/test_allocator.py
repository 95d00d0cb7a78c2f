"""A process that keeps what it frees meets no page twice; one whose user tuned the C library is
left alone."""

import mmap
import os
import platform
import subprocess
import sys

import pytest

STEP_BYTES = 2**20 + 2**26 + 2**22 + 2**25
FEWEST = STEP_BYTES / mmap.PAGESIZE / 2
"""Faults of a step whose memory comes anew, which meets nearly every page of it; transparent huge pages,
which would be fewer, are off.
"""
MARGIN = 5
"""How many times as many those are, at least, as the faults that everything else in the process causes."""
CODE = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
import torch
from flava_ds.allocator import keep_freed_memory
from flava_ds.data.workers import start_worker
calls = {"leave": lambda: None, "keep": keep_freed_memory, "loader process": lambda: start_worker(0)}
kept = calls[sys.argv[1]]()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return [torch.ones(size, dtype=torch.uint8) for size in (2**20, 2**26, 2**22, 2**25)]
step()
before = faults()
for _ in range(10):
    step()
print(kept, (faults() - before) // 10)
"""


def faults_per_step(mode: str, **variables: str) -> tuple[str, int]:
    """Returns what keep_freed_memory said, and how many page faults a step of 101 MiB meets after
    the first."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_used_again_without_page_faults():
    (_, before), (kept, after) = faults_per_step("leave"), faults_per_step("keep")
    assert kept == "True" and before > FEWEST and before > MARGIN * after
    _, after = faults_per_step("loader process")
    assert before > MARGIN * after


@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_user_tuned_stays(variables):
    kept, faults = faults_per_step("keep", **variables)
    assert kept == "False" and faults > FEWEST
