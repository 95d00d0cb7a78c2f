"""A stranger's place for the records of the log: a table of comma-separated values."""

from __future__ import annotations

import csv
import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from real_runs import train_all
from stranger_runs import STEPS, STOPPED_AFTER, curve, split, stranger_config

from flava_ds.config import LoggingConfig
from flava_ds.config.sinks import SinkConfig
from flava_ds.errors import ConfigError
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.watching.sinks import Sink


@dataclass(frozen=True, kw_only=True)
class TableConfig(SinkConfig, type="table"):
    """A file in the run's folder, with a column for each of some keys."""

    file: str
    columns: tuple[str, ...]

    def check(self, where: str, config: Any) -> None:
        if "step" in self.columns:
            raise ConfigError(f"{where}.columns: the step comes first by itself; leave it out")

    def open(self, config: Any, description: dict[str, Any], first_step: int) -> Table:
        return Table(config.run_path / self.file, ("step", *self.columns), first_step)


class Table(Sink):
    """Rows of a run; those that a resumed run will write again are left out."""

    def __init__(self, path: Path, columns: tuple[str, ...], first_step: int) -> None:
        self.path, self.columns = path, columns
        self._keep(first_step)

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([record.get(column) for column in self.columns])

    def go_back(self, step: int, rollback: dict[str, Any]) -> None:
        self._keep(step)

    def close(self) -> None:
        pass

    def _keep(self, steps: int) -> None:
        """Begins the file again with the rows of the first `steps` steps."""
        rows = rows_of(self.path)[1:] if self.path.is_file() else []
        kept = [row for row in rows if int(row[0]) < steps]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([self.columns, *kept])


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_sink_has_every_line_once_also_of_a_resumed_run(run_ranks, tmp_path):
    table = TableConfig(file="table.csv", columns=("loss/pairs", "lr"))
    config = stranger_config(tmp_path, name="table", objectives={"pairs": GlobalContrastiveConfig()})
    logging = dataclasses.replace(config.logging, sinks={"mine": table})
    config = dataclasses.replace(config, logging=logging)
    whole, broken = (split(config, name, "zero1", 2) for name in ("whole", "broken"))
    runs = ((whole, None), (broken, STOPPED_AFTER), (broken, None))
    assert run_ranks(train_all, 2, runs) == [[0, 128 + signal.SIGTERM, 0]] * 2
    for run in (whole, broken):
        header, *rows = rows_of(run.run_path / "table.csv")
        assert header == ["step", "loss/pairs", "lr"] and len(rows) == STEPS
        assert [[int(row[0]), float(row[1]), float(row[2])] for row in rows] == [
            [line["step"], line["loss/pairs"], line["lr"]] for line in curve(run)
        ]


def test_a_sink_checks_its_settings(tmp_path):
    logging = LoggingConfig(sinks={"mine": TableConfig(file="x", columns=("step",))})
    with pytest.raises(ConfigError, match=r"logging\.sinks\.mine\.columns: the step comes first"):
        stranger_config(
            tmp_path, name="table", logging=logging, objectives={"pairs": GlobalContrastiveConfig()}
        )
