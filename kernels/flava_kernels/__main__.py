"""python -m flava_kernels: prints each operator's implementation on this machine, and the reason."""

import os
import sys

import flava_kernels

if __name__ == "__main__":
    try:
        flava_kernels.report()
        sys.stdout.flush()
    except ValueError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # e.g. `| head`
        os._exit(141)
