"""Triton 3.6.0 beside the installed one, for tests: the oldest version supported, in a folder of its own
inside the virtual environment.

`python triton_36.py ARGUMENTS` runs Python with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "3.6.0"
FOLDER = Path(sys.prefix) / f"triton-{VERSION}"


def environment() -> dict[str, str]:
    """Returns the environment in which Python finds this Triton first; installs it the first time. Raises
    RuntimeError where pip cannot.
    """
    if not FOLDER.is_dir():
        _install()
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))}


def _install() -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        folder = Path(scratch) / "triton"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            folder,
            f"triton=={VERSION}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(
                f"triton {VERSION} cannot be installed, so the kernels are not compiled with it (is "
                f"there a network?): {done.stderr[-2000:]}"
            )
        shutil.move(folder, FOLDER)


if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], env=environment()).returncode)
