"""The watcher that saves a run when a checkpoint is due and rolls a diverged run back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flava_ds.checkpoints import rollback
from flava_ds.checkpoints.saver import Saver
from flava_ds.config import Config
from flava_ds.config.evaluation import higher_is_better
from flava_ds.errors import UserError
from flava_ds.ranks.distributed import log
from flava_ds.training.engine import Engine
from flava_ds.training.trainer import Loader, is_due
from flava_ds.training.watcher import DivergedError, Note, Watcher
from flava_ds.watching.metrics import Metrics
from flava_ds.watching.run_log import lower_in
from flava_ds.watching.spikes import SpikeWatch


class CheckpointKeeper(Watcher):
    """Writes checkpoints every so many steps or minutes, on a stop request, and at the end."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        loader: Loader,
        metrics: Metrics,
        spikes: SpikeWatch,
        first_step: int,
        measured: Callable[[str], dict[str, Any] | None] = lambda name: None,
    ) -> None:
        """`measured` returns an evaluation's result by name, for checkpoint.best_metric."""
        self.engine, self.config, self.loader, self._measured = engine, config, loader, measured
        self.metrics, self.spikes = metrics, spikes
        self.saver = Saver(engine, config, first_step)
        self._saved_at, self._saved_s, self._asked = first_step, time.monotonic(), False
        self._logged: dict[str, Any] = {}

    def note(self) -> Note:
        return Note(saving=int(self.saver.status), save=self._minutes_are_over())

    def heard(self, step: int, notes: Sequence[Note]) -> None:
        self.saver.observe([note.saving for note in notes])
        self._asked = any(note.save for note in notes)

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        self._logged |= record

    def after_step(self, step: int, *, stopping: bool) -> None:
        if not stopping and (self._asked or is_due(step + 1, self.config.checkpoint.every_steps)):
            self.save(step + 1)

    def on_end(self, steps: int, *, stopped: bool) -> None:
        self.save(steps, last=True)

    def save(self, step: int, last: bool = False) -> None:
        """Saves the state after `step` updates unless already saved; waits for the `last` to be written."""
        with self.metrics.paused():
            if step > self._saved_at:
                self.spikes.look()
                self.saver.save(step, self.loader.state(step), self._metric(), self.spikes.state())
                self._saved_at, self._saved_s = step, time.monotonic()
            if last:
                self.saver.finish()

    def go_back(self, diverged: DivergedError) -> int:
        """Returns to the last good checkpoint and skips the data up to the divergence; returns its step.

        Raises: UserError on all ranks when there is no good checkpoint, or max_rollbacks is used up.
        """
        self.saver.finish()
        done, most = self.spikes.rollbacks, self.config.training.max_rollbacks
        resumed = rollback.go_back(self.engine, self.config) if done < most else None
        if resumed is None:
            often = ""
            if most:
                spent = f"it has gone back {done} times (training.max_rollbacks); "
                often = spent if done >= most else "there is no good checkpoint; "
            clip = " or" if self.config.training.gradient_clipping else ", set"
            raise UserError(
                f"{diverged}; {often}lower optimizer.lr{clip} training.gradient_clipping, or look at the "
                f"data; {self._where_to_continue()}"
            ).everywhere()
        self.loader.go_back(resumed.step, diverged.step + 1)
        self.spikes.set_state(resumed.spikes)
        self.spikes.rollbacks = done + 1
        self.metrics.go_back(resumed.step, {"at": diverged.step, "to": resumed.step, "reason": str(diverged)})
        self._saved_at = self.saver.published = resumed.step
        if self.engine.world.is_main:
            log.warning(
                "%s; back to step %d, skipping the data of the steps since: rollback %d of %d",
                diverged, resumed.step, done + 1, most,
            )  # fmt: skip
        return resumed.step

    def _metric(self) -> dict[str, Any] | None:
        """Returns what checkpoint.keep_best compares: an evaluation's result, or the last logged value."""
        name = self.config.checkpoint.best_metric
        if (found := self._measured(name)) is not None:
            return found
        if name and name not in self._logged and self.engine.world.is_main:
            seen = ", ".join(sorted(self._logged)) or "no numbers yet"
            log.warning("checkpoint.best_metric '%s' has not been logged yet; the log has %s", name, seen)
        if name not in self._logged:
            return None
        higher = higher_is_better(name, lower_in(self._logged))
        value, step = self._logged[name], self._logged["step"]
        return {"name": name, "value": value, "step": step, "higher_is_better": higher}

    def _minutes_are_over(self) -> bool:
        """Returns whether checkpoint.every_minutes have passed since the last save, by rank 0's clock."""
        minutes = self.config.checkpoint.every_minutes
        return self.engine.world.is_main and 0 < minutes <= (time.monotonic() - self._saved_s) / 60

    def _where_to_continue(self) -> str:
        """Names the checkpoint that the next run will start from."""
        if not self.saver.published:
            return "there is no checkpoint yet"
        return f"the same command goes on from step {self.saver.published} under {self.config.run_path}"
