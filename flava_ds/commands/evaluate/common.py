"""What tasks and suites share: lines for the user, facts about the model, where fine-tuning is kept."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds.errors import UserError

if TYPE_CHECKING:
    import torch

    from flava_ds.evaluation.frozen_model import Workplace
    from flava_ds.evaluation.opening import Opened
    from flava_ds.evaluation.shares import Share

NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EAGAIN)
"""What the system says of files that others have."""


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
        average=options.average,
    )


def keep(write: Callable[[], object]) -> None:
    """Writes results that are printed, too. Says in one line where they may not be written, as in a folder of
    somebody else's run, or where another process does not let go of the file.
    """
    try:
        write()
    except OSError as error:
        if error.filename is None or error.errno not in NOT_OURS:
            raise
        tell_user(f"{error.filename}: {error.strerror}; the results are printed, but not kept")


def of_step(opened: Opened, *names: str) -> Path | None:
    """Returns a folder in a run's for what is found of the step that is open; None for what is no run."""
    from flava_ds.checkpoints.files import name_of

    if opened.run_path is None or opened.described.step is None:
        return None
    average = f"_{opened.described.average}" if opened.described.average else ""
    return opened.run_path.joinpath(*names, f"{name_of(opened.described.step)}{average}")


def workplace(
    options: argparse.Namespace, opened: Opened, tell: Callable[[str], None], usual: Path | None = None
) -> Workplace:
    """Returns where fine-tuning keeps its state: the folder that the user names, one in a run's folder, or
    else the `usual` one.

    Raises: UserError if there is none and weights are to be kept.
    """
    from flava_ds.evaluation.frozen_model import Workplace

    folder = options.keep or of_step(opened, "fine_tuning") or usual
    if folder is None and options.keep_weights:
        raise UserError(
            f"--keep-weights: {opened.described.name} is in no run's folder here; give --keep DIR, too"
        )
    return Workplace(folder, tell, options.keep_weights)


def model_facts(opened: Opened) -> dict[str, Any]:
    """Returns which model this is, and how it computes."""
    first, described = next(opened.module.parameters()), opened.described
    return {
        **{"family": described.family, "step": described.step, "weights": opened.weights},
        **({"average": described.average} if described.average else {}),
        **{"precision": str(first.dtype).removeprefix("torch."), "device": str(first.device)},
    }
