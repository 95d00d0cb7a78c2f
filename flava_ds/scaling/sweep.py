"""A sweep's folder: a manifest of its runs, a small file with the state of each, and the runs themselves.

    FOLDER/sweep.json          the manifest: base, commit, and every run with its overrides
    FOLDER/states/NAME.json    state, attempts, reason and results of a run, written by whoever runs it
    FOLDER/logs/NAME.log       what its processes said
    FOLDER/NAME/               the run, an ordinary one

One file for each state, so that the tasks of an array never write the same file.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flava_ds.config.evaluation import higher_is_better
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import ConfigError, UserError, number_of
from flava_ds.ranks.endings import is_stop, last_words, output_lines, own_error, signal_of
from flava_ds.ranks.lock_files import NAME as LOCK
from flava_ds.scaling.results import results
from flava_ds.scaling.spec import Run
from flava_ds.storage.atomic import write_json, write_whole
from flava_ds.watching.run_log import lower_is_better, read_log

MANIFEST = "sweep.json"
PLANNED, RUNNING, FINISHED, FAILED = "planned", "running", "finished", "failed"
STATES = (PLANNED, RUNNING, FINISHED, FAILED)


@dataclass(frozen=True)
class Sweep:
    """The manifest of a sweep's folder."""

    folder: Path
    base: str
    metric: str
    commit: str
    """Of the source, "unknown" outside of a repository."""
    runs: Mapping[str, Run]
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Run -> what is known before it runs: parameters."""
    plugins: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """Reads a folder's manifest. Raises: UserError when there is none, or it cannot be read."""
        path = folder / MANIFEST
        try:
            said = loads(read_small(path))
            runs = {
                name: Run(dict(own["overrides"]), dict(own["point"]), tuple(own["parts"]), own["held_out"])
                for name, own in said["runs"].items()
            }
            facts = {name: dict(own["facts"]) for name, own in said["runs"].items()}
            base, metric, commit = (said[name] for name in ("base", "metric", "commit"))
            if not all(isinstance(each, str) for each in (base, metric, commit, *said["plugins"])):
                raise ValueError("base, metric, commit and plugins are texts")
            if other := [name for name, run in runs.items() if run.name != name]:
                raise ValueError(f"the overrides of run {other[0]!r:.60} are not those that it was named by")
            return cls(folder, base, metric, commit, runs, facts, tuple(said["plugins"]))
        except FileNotFoundError:
            raise UserError(
                f"{folder}: holds no {MANIFEST}, so it is no sweep; make one with a SPEC"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); restore it"
            ) from error

    def save(self) -> None:
        """Writes the manifest; the file appears whole or not at all."""
        runs = {
            name: {
                "overrides": dict(run.overrides),
                "point": dict(run.point),
                "parts": run.parts,
                "held_out": run.held_out,
                "facts": dict(self.facts.get(name, {})),
            }
            for name, run in self.runs.items()
        }
        said = {"base": self.base, "metric": self.metric, "commit": self.commit, "plugins": self.plugins}
        write_json(self.folder / MANIFEST, said | {"runs": runs}, indent=1, durable=True)

    def path_of(self, name: str) -> Path:
        """Returns a run's folder."""
        return self.folder / name

    def log_of(self, name: str) -> Path:
        """Returns the file with what a run's processes said."""
        return self.folder / "logs" / f"{name}.log"

    def state(self, name: str) -> dict[str, Any]:
        """Returns what is known of a run: state, attempts, and with it reason or results."""
        path = self.folder / "states" / f"{name}.json"
        try:
            said = dict(loads(read_small(path)))
            counts = (said["attempts"], said.get("log_bytes", 0))
            if said["state"] not in STATES or not all(isinstance(own, int) and own >= 0 for own in counts):
                raise ValueError(f"state {said['state']!r:.40} after {said['attempts']!r:.40} attempts")
            wrong = [
                key for key, value in said.get("results", {}).items() if not isinstance(value, int | float)
            ]
            if wrong:
                raise ValueError(f"result {wrong[0]!r:.60} is no number")
            if not all(isinstance(each, str) for each in said.get("lower_is_better", [])):
                raise ValueError("lower_is_better is no list of names")
            return said
        except FileNotFoundError:
            return {"state": PLANNED, "attempts": 0}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it to plan the run again") from error

    def higher_is_better(self) -> bool:
        """Returns whether the highest metric is the best, by what the tasks of finished runs say."""
        return higher_is_better(self.metric, self.lower_is_better())

    def lower_is_better(self) -> set[str]:
        """Returns the tasks' numbers of which lower is better, by what those of finished runs say."""
        return {name for run in self.runs for name in self.state(run).get("lower_is_better", [])}

    def without_metric(self) -> list[str]:
        """Returns the finished runs that have not logged what they are compared by, finite or not."""
        states = {name: self.state(name) for name in self.runs}
        return [
            name
            for name, own in states.items()
            if own["state"] == FINISHED and "reason" not in own and self.metric not in own["results"]
        ]

    def begin(self, name: str) -> int:
        """Notes that a run is starting, and returns where in its log this attempt does: a byte."""
        log = self.log_of(name)
        size = log.stat().st_size if log.is_file() else 0
        attempts = self.state(name)["attempts"] + 1
        self._write(name, {"state": RUNNING, "attempts": attempts, "log_bytes": size})
        return size

    def end(self, name: str, status: int) -> dict[str, Any]:
        """Notes how a run ended, by its exit status, and returns its state.

        A run that a signal asked to stop is planned again: it goes on from its checkpoint.
        """
        begun = self.state(name)
        attempts = begun["attempts"]
        if status == 0:
            log = read_log(self.path_of(name) / "log.jsonl")
            own: dict[str, Any] = {"state": FINISHED, "results": results(log)}
            if (step := log.not_finite_from(self.metric)) is not None:
                own["reason"] = f"{self.metric} is not finite from step {step} on"
            if lower := lower_is_better(log):
                own["lower_is_better"] = lower
            if not own["results"]:
                own = {"state": FAILED, "reason": "it ended well, but its log has no steps"}
            elif (steps := self._steps_of(name)) > (done := log.steps[-1]["step"] + 1):
                why = f"its launcher ended well after {done} of {steps} steps"
                own = {"state": PLANNED, "reason": f"{why}; the same command goes on with it"}
        elif is_stop(status):
            why = f"stopped by signal {status - 128}; the same command goes on with it"
            own = {"state": PLANNED, "reason": why}
        else:
            said, ended = output_lines(self.log_of(name), begun.get("log_bytes", 0)), signal_of(status)
            # a rank that is killed is named by the others
            why = own_error(said) or (f"killed by {ended.name}" if ended is not None else last_words(said))
            own = {"state": FAILED, "reason": why or f"exit status {status}"}
        self._write(name, own | {"attempts": attempts})
        return own

    def _steps_of(self, name: str) -> int:
        """Returns training.total_steps of a run, 0 without its configuration."""
        path = self.path_of(name) / "config.json"
        return int(loads(read_small(path))["training"]["total_steps"]) if path.is_file() else 0

    def _write(self, name: str, state: dict[str, Any]) -> None:
        said = state | {"since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(self.folder / "states" / f"{name}.json", said, indent=1)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row for each run: state, place on the axes, overrides, facts and results."""
        axes = list(dict.fromkeys(axis for run in self.runs.values() for axis in run.point))
        found = []
        for name, run in self.runs.items():
            state = self.state(name)
            reason = state.get("reason") or self._note(name, state)
            row = {"run": name, "state": state["state"], "reason": reason}
            row |= {"parts": " ".join(run.parts), "held_out": run.held_out, "metric": self.metric}
            row |= {f"axis/{axis}": run.point.get(axis, "") for axis in axes}
            row |= dict(self.facts.get(name, {})) | state.get("results", {})
            found.append(row)
        columns = list(dict.fromkeys(column for row in found for column in row))
        return [{column: row.get(column, "") for column in columns} for row in found]

    def _note(self, name: str, state: Mapping[str, Any]) -> str:
        """Says if a run that has begun is not at work, as far as its folder tells."""
        if state["state"] != RUNNING or (self.path_of(name) / LOCK).exists():
            return ""
        return "nobody trains in its folder: it is starting, or was killed; the same command goes on"


def merged(old: Sweep | None, new: Sweep, where: str, other_commit: bool) -> Sweep:
    """Returns the manifest of a folder after a spec has been read again, perhaps with more runs.

    Raises: ConfigError when the folder holds another sweep, or one that was begun at another commit.
    """
    if old is None:
        return new
    lost = [name for name in old.runs if name not in new.runs]
    other = old.base != new.base and not is_moved(old.base, new.base)
    if other or lost:
        lacking = number_of(len(lost), "run")
        what = f"of {old.base}" if other else f"with {lacking} that {where} does not have"
        raise ConfigError(
            f"{new.folder}: holds another sweep, {what}, e.g. {next(iter(lost or old.runs))}; give this one "
            "another name or --folder"
        )
    if old.commit != new.commit and not other_commit:
        raise ConfigError(
            f"{new.folder}: was begun at commit {old.commit[:10]}, this is {new.commit[:10]}; runs of two "
            f"commits may not compare, so check {old.commit[:10]} out, or mix them with --other-commit"
        )
    return new


def is_moved(old: str, new: str) -> bool:
    """Returns whether a base is another's file, as when a SPEC's folder has been moved or copied; what a
    moved one says is compared by the settings of the runs.
    """
    before, now = Path(old), Path(new)
    if not before.is_absolute() or not now.is_absolute() or before.name != now.name:
        return False
    return not before.exists() or before.read_bytes() == now.read_bytes()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_tables(sweep: Sweep, parquet: bool = False) -> list[Path]:
    """Writes results.csv, and results.parquet if asked for. Raises: UserError without pyarrow."""
    rows, written = sweep.rows(), [sweep.folder / "results.csv"]
    write_whole(written[0], table(rows))
    if parquet:
        try:
            import pyarrow
            from pyarrow import parquet as files
        except ImportError as error:
            raise UserError(
                "--parquet needs pyarrow; `pip install 'flava_ds[prepare]'`, or read results.csv"
            ) from error
        columns = {name: [None if row[name] == "" else row[name] for row in rows] for name in rows[0]}
        for name, values in columns.items():  # one axis may have numbers and labels
            if len({type(value) for value in values if value is not None} - {int, float}) > 0:
                columns[name] = [None if value is None else str(value) for value in values]
        written.append(sweep.folder / "results.parquet")
        buffer = io.BytesIO()
        files.write_table(pyarrow.table(columns), buffer)
        write_whole(written[1], buffer.getvalue())
    return written
