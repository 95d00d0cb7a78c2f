"""Lets the processes that share the tests survive each other.

A process that dies fails the test that it was at. pytest-xdist 3.8 would give that test to the next process,
and hand out the files that the dead one had finished, of which nobody ever reports a result: then all wait.
"""

from __future__ import annotations

import contextlib

from xdist.scheduler.loadfile import LoadFileScheduling
from xdist.workermanage import WorkerController


class SurvivingCrashes(LoadFileScheduling):
    """Hands out files, and after a crash only what has not run."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Takes a process out; returns the test at which it died, None if it had finished."""
        crashed, files = None, self.assigned_work[node]
        for file, tests in list(files.items()):
            left = [test for test, done in tests.items() if not done]
            if left and crashed is None:
                crashed = left.pop(0)
                tests[crashed] = True
            if not left:
                del files[file]
        super().remove_node(node)
        return crashed

    def _reschedule(self, node: WorkerController) -> None:
        """Hands a file to a process, unless it is still collecting: when two have died, xdist asks for all
        as soon as the first replacement is ready.
        """
        if node in self.registered_collections:
            super()._reschedule(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Hands a file to a process. One that has just died cannot take it, but has it until its end is
        reported, and then `remove_node` gives it to another.
        """
        with contextlib.suppress(OSError):
            super()._assign_work_unit(node)
