"""What a parallel map leaves behind."""

import subprocess
import sys

MAPS_AND_LEAVES = """
import multiprocessing
multiprocessing.set_start_method("forkserver")  # the default from Python 3.14 on
from flava_ds.processes import leave
from flava_ds.storage.parallel import for_each
assert for_each(abs, [(-1,), (2,)], workers=2, threads=True, label="looking") == [1, 2]
leave(0)
"""


def test_a_rank_that_leaves_leaves_no_semaphore_behind():
    done = subprocess.run([sys.executable, "-c", MAPS_AND_LEAVES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "semaphore" not in done.stderr
