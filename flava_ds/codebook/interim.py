"""The state of a codebook's training on the way, beside its result, so that it can go on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import CheckpointError
from flava_ds.storage.atomic import replacing

if TYPE_CHECKING:
    from flava_ds.codebook.training import CodebookTrainer

SUFFIX = ".unfinished"
"""Of the state's file, after the result's name."""


class Begun(NamedTuple):
    """Where a training stood when its state was written."""

    done: int
    """Updates made."""
    seconds: float
    """That they took, pauses left out."""
    curve: list[dict[str, Any]]
    """The reports so far."""


class Interim:
    """Writes and reads the state. `settings` are all that an exact continuation must have in common."""

    def __init__(self, out: Path, trainer: CodebookTrainer, settings: dict[str, Any]) -> None:
        self.path = out.with_name(out.name + SUFFIX)
        self._trainer, self._settings = trainer, json.loads(json.dumps(settings))

    def save(self, begun: Begun) -> None:
        """Writes the state, which appears whole or not at all.

        Raises: CheckpointError.
        """
        trainer = self._trainer
        state = {
            "settings": json.dumps(self._settings),
            "begun": (*begun[:2], json.dumps(begun.curve)),
            "total_steps": trainer.total_steps,
            "codebook": trainer.codebook.state_dict(),
            "average": trainer.average.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
        }
        try:
            with replacing(self.path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error}); make room") from error

    def load(self) -> Begun | None:
        """Puts the trainer into the state; None where there is none.

        Raises: CheckpointError when it cannot be read, or belongs to other settings.
        """
        if not self.path.is_file():
            return None
        way_out = f"delete {self.path} to begin anew"
        try:
            # data alone: nothing that a file holds is run
            state = torch.load(self.path, map_location=self._trainer.device, weights_only=True)
            saved = json.loads(state["settings"])
            done, seconds, curve = state["begun"]
        except Exception as error:  # a damaged pickle ends in any kind of error
            raise CheckpointError(
                f"{self.path}: no state of a codebook's training, or a damaged one; {way_out}"
            ) from error
        if differing := _differing(saved, self._settings):
            raise CheckpointError(
                f"{self.path}: was begun with {differing}; give the same settings to go on, or {way_out}"
            )
        trainer = self._trainer
        trainer.total_steps = state["total_steps"]
        for part, name in (
            (trainer.codebook, "codebook"),
            (trainer.average, "average"),
            (trainer.optimizer, "optimizer"),
        ):
            part.load_state_dict(state[name])
        return Begun(done, seconds, json.loads(curve))

    def remove(self) -> None:
        """Deletes the state of a training that has come to its end."""
        self.path.unlink(missing_ok=True)


def finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the last report of the training that wrote `out`; None where `out` does not exist, or has been
    written without its record beside an unfinished state.

    Raises: CheckpointError when `out` was made with other settings, or nothing says how.
    """
    record, unfinished = out.with_suffix(".json"), out.with_name(out.name + SUFFIX)
    if not out.exists() or (unfinished.exists() and not record.exists()):
        return None
    way_out = "delete it, or give --out another name"
    try:
        saved = loads(read_small(record))
        report = dict(saved["report"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{out} exists, and {record} does not say how it was made; {way_out}"
        ) from error
    now = json.loads(json.dumps(settings))
    if differing := _differing({name: saved.get(name) for name in now}, now):
        raise CheckpointError(f"{out} exists, made with {differing}; {way_out}")
    return report


def _differing(saved: Any, now: Any, where: str = "") -> str:
    """Names the first setting that differs as 'NAME SAVED instead of NOW'; empty when none does."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*now, *saved]:
            if found := _differing(saved.get(key), now.get(key), f"{where}{key}."):
                return found
        return ""
    return "" if saved == now else f"{where.rstrip('.')} {saved} instead of {now}"
