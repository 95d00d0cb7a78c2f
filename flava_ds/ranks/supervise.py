"""Runs torchrun for `flava-ds train --max-restarts N` and the scripts of launchers/; its agent restarts the
ranks after a failure.
"""

from __future__ import annotations

import os
import signal
import sys

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from flava_ds.ranks import safe_path

ENVIRONMENT = {
    **safe_path.ENVIRONMENT,
    # Otherwise restarted ranks would read the addresses of the dead ones, and most restarts would hang
    # (pytorch issue 135712).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # Seconds between SIGTERM and SIGKILL: enough to finish a step and write a checkpoint.
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "280",
}
"""Defaults for torchrun's environment."""
PASSED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that the agent forwards to the ranks. By default SIGUSR1, which Slurm may send to all processes,
would kill it.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs torchrun with its own arguments.

    Returns 0, the status of the first rank that failed, or 128 + the number of a signal.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options = torchrun.parse_args(arguments)
    options.signals_to_handle = PASSED_ON
    if options.standalone and not options.local_addr:
        options.local_addr = "127.0.0.1"  # ranks would wait at the machine's name, which may not resolve
    try:
        torchrun.run(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        killed = failure.exitcode < 0
        how = f"ended with status {failure.exitcode}"
        if killed:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}"
        tries = int(options.max_restarts) + 1
        when = f"in the last of {tries} attempts" if tries > 1 else "in its only attempt"
        first = "mend what the error above says, and " if failure.exitcode == 2 else ""
        print(
            f"error: rank {rank} {how} {when}; {first}the same command goes on from the latest checkpoint",
            file=sys.stderr,
        )
        return 128 - failure.exitcode if killed else failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        print(f"error: {error.strerror}; set TMPDIR to a folder that can be written", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
