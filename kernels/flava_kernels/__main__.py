"""python -m flava_kernels: prints which implementation every operator uses on this machine, and why."""

import sys

import flava_kernels

if __name__ == "__main__":
    try:
        flava_kernels.report()
    except ValueError as error:
        sys.exit(f"error: {error}")
