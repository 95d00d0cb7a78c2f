"""Keeps the working directory off the import path: it may hold downloaded data, with a torch.py in it.

`python -m` and `python -c` put it first, before the standard library, and so do launchers and dataloader
workers, which start Python in these ways. Imports little, and only from the standard library, because it must
act before anything else is imported.
"""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {"PYTHONSAFEPATH": "1"}
"""Variables for this Python, inherited by every process that it starts."""


def leave_out_working_directory() -> None:
    """Removes the working directory from the import path of this process and those that it starts.

    Keeps it here if it contains this package.

    Raises: SystemExit, after one line, where the working directory has been deleted.
    """
    os.environ.update(ENVIRONMENT)
    started_by_module = getattr(sys.modules.get("__main__"), "__spec__", None) is not None
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("error: the working directory has been deleted; change to another one", file=sys.stderr)
        sys.exit(2)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if started_by_module and not sys.flags.safe_path and sys.path[:1] == [here] and here != package:
        sys.path.pop(0)
