"""Files of a fine-tuning: its state while it runs, its best weights, and its scores once it has finished."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.results import OTHERS
from flava_ds.evaluation.tuning.kept import ENDING, Facts, open_kept
from flava_ds.storage.atomic import check_writable, hold, replacing, write_json
from flava_ds.storage.files import LocalFile
from flava_ds.storage.tensor_files import TensorFile, write_tensors

Scores = dict[str, Score]


@dataclass
class Progress:
    """How far a fine-tuning is, and the scores of its best weights so far."""

    update: int = 0
    merit: float | None = None
    best_update: int = 0
    scores: Scores = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Reads it again."""
        found = loads(text)
        scores = _scores(found.pop("scores"))
        return cls(**found, scores=scores)


class Saved:
    """The files of one task in a folder: TASK.safetensors while it runs, TASK.json afterwards and, if `kept`
    says what they are, TASK.best.safetensors with the best weights.

    `identity` describes what the state depends on; files with another identity are not used. At the end of a
    `with` block other processes may use the files.
    """

    def __init__(
        self, folder: Path | None, task: str, identity: Mapping[str, Any], kept: Facts | None = None
    ) -> None:
        self._running = None if folder is None else folder / f"{task}.safetensors"
        self._done = None if folder is None else folder / f"{task}.json"
        self._lock = None if folder is None else folder / f".{task}.lock"
        self._held: IO[bytes] | None = None
        self.identity = loads(json.dumps(identity))
        self.weights = folder / f"{task}{ENDING}" if folder is not None and kept is not None else None
        """Where the best weights are kept; None if they are not."""
        self._facts = None if kept is None else dataclasses.replace(kept, identity=self.identity)

    def __enter__(self) -> Saved:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._held is not None and self._lock is not None:
            self._lock.unlink(missing_ok=True)
            self._held.close()

    def finished(self) -> Scores | None:
        """Returns the scores of the same fine-tuning if it has finished before and kept what is to be kept,
        else None.
        """
        for found in self._records():
            if found["identity"] == self.identity:
                kept = self.weights is None or self._kept_update() == found["best_update"]
                return _scores(found["scores"]) if kept else None
        return None

    def _records(self) -> list[dict[str, Any]]:
        """Returns what fine-tunings of this task have found that finished here, the latest first."""
        if self._done is None or not self._done.is_file():
            return []
        try:
            latest = loads(read_small(self._done))
            found = [latest, *latest.pop(OTHERS, [])]
            for record in found:
                if not isinstance(record["identity"], dict) or not _scores(record["scores"]):
                    raise ValueError("a result without scores, or what they depend on")
                if type(record["best_update"]) is not int:
                    raise ValueError("a result without its update")
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self._done}: not readable ({error}); delete it to start again") from error

    def begin(self) -> None:
        """Keeps other processes from the files.

        Raises: UserError if the folder cannot be written, another process is at work there, or weights of
        another fine-tuning are kept there: better now than when a state is saved.
        """
        if self._running is not None and self._lock is not None:
            check_writable(self._running.parent, "--keep")
            try:
                self._held = hold(self._lock)
            except BlockingIOError as error:
                raise UserError(
                    f"{self._running}: another process is fine-tuning there; wait for it, or name another "
                    "folder with --keep"
                ) from error
        if self.weights is not None and self.weights.exists() and self._kept_update() is None:
            raise UserError(
                f"{self.weights}: {self._of_what()}; move it away, or name another folder with --keep"
            )

    def load(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Returns the tensors and the progress of an interrupted fine-tuning; None if there is none.

        Raises: DataError naming what differs if it is another one, CheckpointError if it is damaged.
        """
        if self._running is None or not self._running.is_file():
            return None
        path = self._running
        file = TensorFile(lambda: LocalFile(path), str(path))
        try:
            there = loads(file.metadata["identity"])
            if difference := _difference(there, self.identity):
                what = f"an interrupted fine-tuning with {difference}"
                raise DataError(f"{self._running}: {what}; delete the file to start again")
            progress = Progress.from_json(file.metadata["progress"])
            in_state = progress.best_update in (0, progress.update)
            if self.weights is not None and not in_state and self._kept_update() != progress.best_update:
                raise DataError(
                    f"{self._running}: an interrupted fine-tuning, whose best weights so far were not kept; "
                    "delete the file to start again, or leave --keep-weights out"
                )
            return {name: file.read(name) for name in file.entries}, progress
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{self._running}: not readable ({error}); delete it to start again") from error
        finally:
            file.close()

    def goes_on(self) -> str:
        """Says what becomes of this fine-tuning when the same command is given again."""
        if self._running is None:
            return "the same command starts again; with --keep DIR too, it would resume"
        if not self._running.is_file():
            return f"the same command starts again, as nothing was saved yet in {self._running}"
        return f"the same command resumes from {self._running}"

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Writes the state atomically.

        Raises: DataError, also when another process fine-tunes in the same place.
        """
        if self._running is None:
            return
        _write(
            self._running,
            tensors,
            {"identity": json.dumps(self.identity), "progress": progress.to_json()},
        )

    def keep(self, weights: Mapping[str, Tensor], progress: Progress) -> None:
        """Writes the best weights so far, if they are to be kept, atomically.

        Call it after `save`, so that a state without them can write them again. Raises: DataError.
        """
        if self.weights is not None and self._facts is not None:
            facts = dataclasses.replace(self._facts, update=progress.best_update)
            _write(self.weights, weights, facts.to_metadata())

    def _kept_update(self) -> int | None:
        """Returns after how many updates the kept weights are of this fine-tuning; None if there are none."""
        if self.weights is None or self._facts is None or not self.weights.is_file():
            return None
        try:
            facts, file = open_kept(self.weights)
        except UserError:  # damaged, or of something else
            return None
        file.close()
        return facts.update if facts.is_of(self._facts) else None

    def _of_what(self) -> str:
        """Says what the kept weights are of that are not of this fine-tuning."""
        assert self.weights is not None
        try:
            facts, file = open_kept(self.weights)
        except UserError:
            return "is damaged, or of something else"
        file.close()
        difference = _difference(facts.identity, self.identity)
        return (
            f"is of a fine-tuning with {difference}" if difference else "is of other classes or another model"
        )

    def finish(self, progress: Progress) -> None:
        """Writes the scores beside those of other fine-tunings of the task, and deletes the state."""
        if self._done is None or self._running is None:
            return
        scores = {name: dataclasses.asdict(score) for name, score in progress.scores.items()}
        whole = {"identity": self.identity, "best_update": progress.best_update, "scores": scores}
        others = [record for record in self._records() if record["identity"] != self.identity]
        write_json(self._done, whole | ({OTHERS: others} if others else {}))
        self._running.unlink(missing_ok=True)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Says in what first thing two identities differ; empty if they are equal."""
    for what in {**there, **here}:
        old, new = there.get(what), here.get(what)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            part = _difference(old, new)
            if part:
                return f"{what}: {part}"
        elif old != new:
            return f"{what} {old}, and this one has {new}"
    return ""


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors atomically; what a kill leaves is overwritten by the next attempt.

    Raises: DataError, also when another process writes there.
    """
    try:
        with replacing(path, alone=True) as temporary, temporary.open("wb") as file:
            write_tensors(file, tensors, metadata)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); give another --keep"
        ) from error


def _scores(found: Mapping[str, Mapping[str, Any]]) -> Scores:
    """Reads scores from JSON, which has lists in place of tuples."""
    fields: dict[str, dict[str, Any]] = {
        name: {key: tuple(value) if isinstance(value, list) else value for key, value in score.items()}
        for name, score in found.items()
    }
    return {name: Score(**values) for name, values in fields.items()}
