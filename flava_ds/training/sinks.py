"""Where log records go, on rank 0: JSON lines as the source of truth, the console, TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

from flava_ds.config import Config
from flava_ds.evaluation.run_log import read_log
from flava_ds.training.environment import write_start
from flava_ds.training.log_line import console_line, show


class Sink(Protocol):
    """Takes records, which are flat: key -> number, word or None; training/log_fields.py lists the keys."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_sinks(config: Config, description: dict[str, Any], first_step: int) -> list[Sink]:
    """Opens every sink that the configuration asks for, and notes the start in environment.json. To be called on one rank."""
    write_start(config.run_path / "environment.json", description, first_step)
    sinks: list[Sink] = [JsonLines(config.run_path / "log.jsonl", description, first_step)]
    if config.logging.tensorboard:
        sinks.append(TensorBoard(config.run_path / "tensorboard", first_step))
    return [*sinks, Console(config.training.total_steps)]


class JsonLines:
    """log.jsonl: a header, then a record per line, each on disk before the next step."""

    def __init__(self, path: Path, description: dict[str, Any], first_step: int) -> None:
        """Begins a fresh run's log with `description`; a resumed run's keeps its header and loses the lines that will be written again."""
        header, kept = description, []
        if first_step and path.is_file():
            log = read_log(path)
            kept = [record for record in log.steps if record["step"] < first_step]
            again = {key: description[key] for key in ("started", "versions", "git", "hardware", "config_sha256")}
            header = {**log.header, "resumed": [*log.header.get("resumed", []), {"step": first_step, **again}]}
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (header, *kept)), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """An event file with every number."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new event file; what older ones hold from `first_step` on counts no more."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a point per number."""
        for key, value in numbers(record).items():
            self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


class Console:
    """One line for people; on a terminal it replaces the previous one."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps

    def write(self, record: dict[str, Any]) -> None:
        """Prints the line."""
        show(console_line(record, self._total_steps), last=record["step"] + 1 >= self._total_steps)

    def close(self) -> None:
        """Has nothing to close."""


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Returns what can be drawn over steps."""
    return {key: value for key, value in record.items() if isinstance(value, int | float) and key not in ("step", "time")}
