"""What a parallel map leaves behind."""

import subprocess
import sys
import threading
import time

import pytest

from flava_ds.storage.parallel import ahead

MAPS_AND_LEAVES = """
import multiprocessing
multiprocessing.set_start_method("forkserver")  # the default from Python 3.14 on
from flava_ds.processes import leave
from flava_ds.storage.parallel import for_each
assert for_each(abs, [(-1,), (2,)], workers=2, threads=True, label="looking") == [1, 2]
leave(0)
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_few_of_them_ahead(threads):
    begun, lock = [], threading.Lock()

    def make(number):
        with lock:
            begun.append(number)
        time.sleep(0.01 * (number % 3))
        return -number

    results = ahead(make, range(50), threads=threads, most=4)
    assert next(results) == 0 and len(begun) <= 6
    assert list(results) == [-number for number in range(1, 50)]
    some = ahead(make, range(50), threads=threads, most=4)
    next(some)
    some.close()
    assert len(begun) <= 60, "threads went on after the last reader had left"


def test_a_rank_that_leaves_leaves_no_semaphore_behind():
    done = subprocess.run([sys.executable, "-c", MAPS_AND_LEAVES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "semaphore" not in done.stderr
