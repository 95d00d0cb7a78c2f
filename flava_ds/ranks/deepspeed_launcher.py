"""DeepSpeed's launcher of one machine's ranks, in which Ctrl-C ends in one line, and SIGUSR1 stops the ranks.

The `deepspeed` command starts the same launcher as a process of its own and is prepared for neither: Ctrl-C
ends it with a traceback, before the ranks have written their checkpoint, and SIGUSR1 at once, without them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main() -> None:
    """Starts the ranks that sys.argv describes in the launcher's own options, and waits for them.

    Raises: SystemExit with the status of the first rank that failed, or 128 + the signal that ended that or,
    first of all, this process.
    """
    signal.signal(signal.SIGINT, _leave)  # DeepSpeed's import takes seconds; its launcher then listens itself
    from deepspeed.launcher import launch

    signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))
    received, told = socket.socketpair()
    for end in (received, told):
        end.setblocking(False)
    signal.set_wakeup_fd(told.fileno())  # the launcher's own handlers all end with status 1
    try:
        launch.main()
    except SystemExit as ended:
        if number := _first(received):
            sys.exit(128 + number)
        if isinstance(ended.code, int) and ended.code < 0:  # of a rank that a signal killed
            # once they have met, the others name it; not as an error, which would be read as the reason
            os.write(2, f"a rank was killed by {signal.Signals(-ended.code).name}\n".encode())
            sys.exit(128 - ended.code)  # -N would become 256 - N
        raise  # a rank has failed


def _first(received: socket.socket) -> int:
    """Returns the number of the first signal that came; 0 if none did."""
    try:
        return received.recv(1)[0]
    except BlockingIOError:
        return 0


def _leave(number: int, frame: object) -> None:
    """Ends the process before it has started any rank."""
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
