"""python -m flava_kernels: prints which implementation every operator uses on this machine, and why."""

import flava_kernels

if __name__ == "__main__":
    flava_kernels.report()
