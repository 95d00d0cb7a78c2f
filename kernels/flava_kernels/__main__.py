"""python -m flava_kernels: prints each operator's implementation on this machine, and the reason."""

import sys

import flava_kernels

if __name__ == "__main__":
    try:
        flava_kernels.report()
    except ValueError as error:
        sys.exit(f"error: {error}")
