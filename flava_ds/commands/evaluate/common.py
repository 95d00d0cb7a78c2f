"""What tasks and suites share: lines for the user, facts about the model, where fine-tuning is kept."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from flava_ds.evaluation.opening import Opened
    from flava_ds.evaluation.shares import Share


def tell_user(line: str) -> None:
    """Prints a line to stderr, since stdout is for JSON and paths."""
    print(line, file=sys.stderr, flush=True)


def teller(share: Share) -> Callable[[str], None]:
    """Returns `tell_user` on the first of the ranks that share the work, and silence on the others."""
    return tell_user if share.is_main else lambda line: None


def open_asked(options: argparse.Namespace, device: torch.device | None) -> Opened:
    """Opens the model that the options name, on the device that they name or on this one.

    Raises: UserError.
    """
    from flava_ds.evaluation.opening import open_model

    return open_model(
        options.model,
        device=options.device or device,
        precision=options.precision,
        regions=options.regions,
    )


def keep(write: Callable[[], object]) -> None:
    """Writes results that are printed, too. Says in one line where they may not be written, as in a folder of
    somebody else's run.
    """
    try:
        write()
    except OSError as error:
        if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        tell_user(f"{error.filename}: {error.strerror}; the results are printed, but not kept")


def states_folder(options: argparse.Namespace, opened: Opened) -> Path | None:
    """Returns where fine-tuning saves its state: the folder that the user names, or one in a run's folder."""
    if options.keep is not None or opened.run_path is None:
        return options.keep
    return opened.run_path / "fine_tuning" / f"step_{opened.described.step:08d}"


def model_facts(opened: Opened) -> dict[str, Any]:
    """Returns which model this is, and how it computes."""
    first, described = next(opened.module.parameters()), opened.described
    return {
        **{"family": described.family, "step": described.step, "weights": opened.weights},
        **{"precision": str(first.dtype).removeprefix("torch."), "device": str(first.device)},
    }
