"""Destinations of log records, on rank 0: JSON lines, console, TensorBoard, Weights & Biases, Prometheus."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from flava_ds.config import Config
from flava_ds.errors import ConfigError, UserError, told_at
from flava_ds.plain_text import one_line
from flava_ds.ranks.distributed import log
from flava_ds.storage.atomic import replacing, write_whole
from flava_ds.watching.environment import write_start
from flava_ds.watching.log_fields import FIELDS, field_of
from flava_ds.watching.log_line import console_line, show
from flava_ds.watching.run_log import read_lines

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Sink(Protocol):
    """Takes flat records: key -> number, string or None; watching/log_fields.py lists the keys."""

    def write(self, record: dict[str, Any]) -> None: ...

    def go_back(self, step: int, rollback: dict[str, Any]) -> None:
        """Called when the run repeats the steps from `step` on; a sink drops their records if it can."""
        return

    def close(self) -> None: ...


def open_sinks(config: Config, description: dict[str, Any], first_step: int) -> list[Sink]:
    """Opens the configured sinks and records the start in environment.json. Call it on one rank."""
    write_start(config.run_path / "environment.json", description, first_step)
    first = JsonLines(config.run_path / "log.jsonl", description, first_step)
    others: dict[str, Sink] = {}
    if config.logging.tensorboard:
        others["tensorboard"] = TensorBoard(config.run_path / "tensorboard", first_step)
    if config.logging.wandb:
        others["wandb"] = WeightsAndBiases(config, description, first_step)
    if config.logging.prometheus:
        others["prometheus"] = Prometheus(config.run_path / "metrics.prom", config.name)
    for name, sink in config.logging.sinks.items():
        others[f"sinks.{name}"] = sink.open(config, description, first_step)
    spared = [Spared(f"logging.{name}", sink) for name, sink in others.items()]
    return [first, *spared, Console(config.training.total_steps)]


class Spared(Sink):
    """Another sink than log.jsonl, whose failures the run outlives: it warns of the first, and of what the
    sink lacks when it writes again or the run ends. A UserError ends the run.
    """

    def __init__(self, name: str, sink: Sink) -> None:
        """`name` is the option that asks for the sink."""
        self._name, self._sink = name, sink
        self._lacks: int | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Writes the record, also if the one before failed."""
        step, since = record["step"], self._lacks
        if self._tried(lambda: self._sink.write(record), step) and since is not None:
            self._lacks = None
            log.warning(
                "%s writes again; it lacks the records from step %d to %d", self._name, since, step - 1
            )

    def go_back(self, step: int, rollback: dict[str, Any]) -> None:
        self._tried(lambda: self._sink.go_back(step, rollback), step)

    def close(self) -> None:
        if self._lacks is not None:
            log.warning("%s lacks the records from step %d on; log.jsonl has them", self._name, self._lacks)
        self._tried(self._sink.close, None)

    def _tried(self, action: Callable[[], None], step: int | None) -> bool:
        """Returns whether an action was done; warns if it could not be, unless the one before could not."""
        try:
            action()
            return True
        except UserError:
            raise
        except Exception as error:
            if self._lacks is None:
                what = (
                    "it may lack its last records"
                    if step is None
                    else f"it lacks the records from step {step} on"
                )
                told = str(error) if isinstance(error, OSError) else told_at(error)
                log.warning(
                    "%s cannot be written (%s); %s, which log.jsonl has", self._name, one_line(told), what
                )
                self._lacks = step
            return False


class JsonLines(Sink):
    """log.jsonl: a header, then a record per line, each on disk before the next step."""

    def __init__(self, path: Path, description: dict[str, Any], first_step: int) -> None:
        """Starts a new run's log with `description`; a resumed run keeps its header, drops repeated lines."""
        self._path, header, kept = path, description, list[str]()
        if first_step and path.is_file():
            earlier, kept = read_lines(path, json.dumps, before=first_step)
            again = {
                key: description[key] for key in ("started", "versions", "git", "hardware", "config_sha256")
            }
            header = {**earlier, "resumed": [*earlier.get("resumed", []), {"step": first_step, **again}]}
        self._file = self._begin(header, kept)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line. Raises: OSError if the file is no longer there, which an open file does not notice."""
        if not self._path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def go_back(self, step: int, rollback: dict[str, Any]) -> None:
        """Removes the lines from `step` on and adds the rollback to the header."""
        self._file.close()
        earlier, kept = read_lines(self._path, json.dumps, before=step)
        header = {**earlier, "rollbacks": [*earlier.get("rollbacks", []), rollback]}
        self._file = self._begin(header, kept)

    def _begin(self, header: dict[str, Any], kept: list[str]) -> TextIO:
        """Replaces the whole file by a header and the lines that are kept, and opens it."""
        with replacing(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in (json.dumps(header), *kept))
        return self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+(?:\.\d{6}(?=\.))?)")
"""The beginning of an event file's name, with its time."""


class TensorBoard(Sink):
    """An event file with every number.

    It is opened for each record, so that a file that has been moved away is noticed. TensorBoard's own writer
    has a thread, which ends with a traceback then.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Begins a new event file, which supersedes older ones from `first_step` on."""
        self._folder = folder
        self.go_back(first_step, {})

    def go_back(self, step: int, rollback: dict[str, Any]) -> None:
        """Begins a new event file."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        # event files are read in the order of their names; the clock may be behind that of an earlier start
        earlier = [found for file in self._folder.iterdir() if (found := _EVENTS.match(file.name))]
        times = [time.time(), *(float(found[1]) + 1 for found in earlier)]
        name = f"events.out.tfevents.{max(times):.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._size = self._folder / name, 0
        self._path.touch(exist_ok=False)
        start = SessionLog(status=SessionLog.START)
        self._add(Event(file_version="brain.Event:2"), Event(step=step, session_log=start))

    def write(self, record: dict[str, Any]) -> None:
        """Adds a point per number, so that a crash loses none."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=key, simple_value=value) for key, value in numbers(record).items()]
        self._add(Event(step=record["step"], summary=Summary(value=points)))

    def _add(self, *events: Any) -> None:
        """Adds events behind those that are whole."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        added = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(added).write(event.SerializeToString())
        with self._path.open("r+b") as file:
            file.seek(self._size)
            file.truncate()  # what a full disk has left of a record hides all behind it
            file.write(added.getvalue())
        self._size += len(added.getvalue())

    def close(self) -> None:
        """Does nothing."""


class WeightsAndBiases(Sink):
    """One run at Weights & Biases, or in the run's wandb/ folder offline; a resumed run continues it."""

    def __init__(self, config: Config, description: dict[str, Any], first_step: int) -> None:
        """Starts or resumes the run with `description` as its configuration.

        Raises: ConfigError if the service rejects it.
        """
        import wandb

        remembered = config.run_path / "wandb" / "run_id"
        remembered.parent.mkdir(exist_ok=True)
        if not (first_step and remembered.is_file()):
            write_whole(remembered, uuid.uuid4().hex[:12] + "\n")
        try:
            self._run = wandb.init(
                project=config.logging.wandb_project,
                name=config.name,
                id=remembered.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(config.run_path),
                config=description,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"Weights & Biases rejects the run ({error}); log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave logging.wandb off"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, record: dict[str, Any]) -> None:
        """Sends every number and the step: a resumed run repeats steps, but W&B's own counter only grows."""
        self._run.log({**numbers(record), "step": record["step"]})

    def close(self) -> None:
        """Sends what is left and ends the run."""
        self._run.finish()


class Prometheus(Sink):
    """The latest numbers in the text format of node_exporter's textfile collector."""

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run = path, run
        self._latest: dict[str, Any] = {}
        self._totals: Counter[str] = Counter()

    def write(self, record: dict[str, Any]) -> None:
        """Replaces the file."""
        from prometheus_client import write_to_textfile

        counts = {key for key in record if field_of(key)[0].kind == "count"}
        self._totals.update({key: record[key] for key in counts})
        self._latest = {key: value for key, value in record.items() if key not in counts} | self._totals
        write_to_textfile(str(self._path), self)

    def collect(self) -> Iterator[Metric]:
        """Yields numbers by field with meaning and unit; None becomes NaN, strings are left out."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for key, value in self._latest.items():
            field, labels = field_of(key)
            if field.kind != "text":
                found.setdefault(field.metric, []).append(
                    ({"run": self._run, **labels}, math.nan if value is None else float(value))
                )
        for field in FIELDS:
            if samples := found.get(field.metric):
                kind = GaugeMetricFamily if field.kind == "gauge" else CounterMetricFamily
                family = kind(
                    field.metric,
                    field.meaning + f" ({field.unit})" * bool(field.unit),
                    labels=list(samples[0][0]),
                )
                for labels, value in samples:
                    family.add_metric(list(labels.values()), value)
                yield family

    def close(self) -> None:
        """Leaves the last numbers in place; flava_ds_time tells their age."""


class Console(Sink):
    """One line for the terminal, which replaces the previous one."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps

    def write(self, record: dict[str, Any]) -> None:
        """Prints the line."""
        try:
            show(console_line(record, self._total_steps), last=record["step"] + 1 >= self._total_steps)
        except OSError as error:
            error.filename = "standard output"  # whose file or pipe has no name
            raise

    def close(self) -> None:
        """Does nothing."""


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Returns the values that can be plotted over steps."""
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float) and key not in ("step", "time")
    }
