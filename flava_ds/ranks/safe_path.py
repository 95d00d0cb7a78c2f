"""Keeps the working directory off the path that Python imports from: it may be a folder of downloaded data,
with a torch.py in it.

`python -m` and `python -c` put it first, before the standard library, and so do launchers and loader
processes, which start Python in these ways. Imports the standard library only, and little of it, as it is to
act before the rest is imported.
"""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {"PYTHONSAFEPATH": "1"}
"""What Python is told, and hands on to every process that this one starts."""


def leave_out_working_directory() -> None:
    """Takes the working directory off this process's import path, unless this package itself lies there, and
    keeps it off that of all processes started from here."""
    os.environ.update(ENVIRONMENT)
    started_by_module = getattr(sys.modules.get("__main__"), "__spec__", None) is not None
    here, package = os.getcwd(), os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if started_by_module and not sys.flags.safe_path and sys.path[:1] == [here] and here != package:
        sys.path.pop(0)
