"""What runs say about scaling: laws with intervals, the run that was held out, what to train for a budget."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config.plain_files import read_small
from flava_ds.errors import DataError, did_you_mean
from flava_ds.scaling import laws
from flava_ds.scaling.laws import Columns, Fit, Form

NEEDED = ("loss", "parameters", "samples")
"""What a law cannot do without."""
FLOPS_PER_PARAMETER = 6
"""Of a sample (in language models, a token), where the table has no FLOPs: forward and backward."""
QUANTILES = (2.5, 97.5)
IDENTIFIED = 0.01
"""E counts as identified if its interval ends above this share of the lowest loss."""
SAME = 0.03
"""Runs that differ by less than this share in size and data are compared by their batches."""
SIZES = 15
"""The recommended size is sought within so many powers of e around the runs' mean."""
LEAST_GAIN = 1.001
"""A law gives advice if it sees the loss fall by this factor from the runs' least size to their largest, and
from their least data to their most.
"""
NEAR_BEST = 1.01
"""The recommended batch is the largest one with a predicted loss within this factor of the lowest."""


@dataclass(frozen=True)
class Runs:
    """Finished runs as columns, each [k]."""

    names: tuple[str, ...]
    columns: Columns
    losses: np.ndarray
    held_out: np.ndarray
    """bool"""

    def at(self, rows: np.ndarray) -> Runs:
        """Returns some runs: [m] rows, or [k] bool."""
        places = np.arange(len(self.names))[rows]
        columns = {name: column[places] for name, column in self.columns.items()}
        names = tuple(self.names[place] for place in places)
        return Runs(names, columns, self.losses[places], self.held_out[places])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Reads a table with a line of names. Raises: DataError naming the line that does not fit it."""
    try:
        reader = csv.DictReader(io.StringIO(read_small(path).decode("utf-8")))
        names, rows = reader.fieldnames or [], list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"{path}: two columns are called '{twice[0]}'; rename one")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            count = len(row) + (len(row[None]) - 1 if None in row else -[*row.values()].count(None))
            raise DataError(
                f"{path}: row {number} has {count} values for {len(names)} columns; write numbers without "
                "commas, or in quotes"
            )
    return rows


def runs_of(
    rows: Sequence[Mapping[str, Any]],
    where: str,
    named: Mapping[str, str],
    needed: Collection[str] = NEEDED,
) -> Runs:
    """Makes runs of a table's rows; those of a sweep that are not finished, or have no loss, are left out.

    `named` says which columns are 'loss', 'parameters', 'samples' and so on. Without those that are not
    `needed`, data is never repeated, a sample takes six FLOPs for each parameter, and the runs of most FLOPs
    are held out.

    Raises: DataError naming the column or the row.
    """
    known = list(dict.fromkeys(name for row in rows for name in row))
    for what in needed:
        if named[what] not in known:
            hint = did_you_mean(named[what], known) or f"; there is {', '.join(known[:20]) or 'nothing'}"
            raise DataError(f"{where}: has no column '{named[what]}' for the {what}{hint}; give --{what}")
    rows = [
        {"run": number, **row}
        for number, row in enumerate(rows, start=1)
        if row.get("state") in (None, "finished") and row[named["loss"]] != ""
    ]
    if not rows:
        raise DataError(f"{where}: has no finished run with a '{named['loss']}'; finish the sweep first")

    names = tuple(str(row["run"]) for row in rows)

    def column(what: str, default: Callable[[], np.ndarray]) -> np.ndarray:
        if named[what] not in known:
            return default()
        numbers = [_number(row, named[what], where, run) for row, run in zip(rows, names, strict=True)]
        return np.array(numbers)

    n = column("parameters", lambda: np.empty(0))
    d = column("samples", lambda: np.empty(0))
    columns = {
        "parameters": n,
        "samples": d,
        "unique": column("unique", lambda: d),
        "batch": column("batch", lambda: np.ones_like(d)),
        "flops": column("flops", lambda: FLOPS_PER_PARAMETER * n * d),
    }
    held_out = np.array([str(row.get("held_out", "")).lower() in ("true", "1", "yes") for row in rows])
    if not held_out.any():
        held_out = np.isclose(columns["flops"], columns["flops"].max(), rtol=1e-6)
    return Runs(names, columns, column("loss", lambda: np.empty(0)), held_out)


def _number(row: Mapping[str, Any], name: str, where: str, run: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value < float("inf"):
        raise DataError(f"{where}: '{name}' of run {run} is {row[name]!r}, not a number above 0")
    return value


def of_main_batch(runs: Runs) -> np.ndarray:
    """Returns which runs have the batch that most have: [k] bool."""
    most, _ = Counter(runs.columns["batch"].round(6).tolist()).most_common(1)[0]
    return np.isclose(runs.columns["batch"], most)


@dataclass(frozen=True)
class Law:
    """A fitted form, and its fits to runs drawn with repetition."""

    fit: Fit
    resampled: tuple[Fit, ...]
    errors: np.ndarray
    """Log errors of the runs that it was fitted to."""
    lowest: float
    """Of their losses."""

    def interval(self, value: Callable[[Fit], float]) -> tuple[float, float]:
        """Returns 95 % of what the resampled fits say."""
        low, high = np.percentile([value(each) for each in self.resampled], QUANTILES)
        return float(low), float(high)

    def forecast(self, columns: Columns) -> tuple[float, float, float]:
        """Returns the predicted loss of one run, with the 95 % that resampling and the errors leave."""
        noise = np.random.default_rng(1).choice(self.errors, len(self.resampled))
        found = [float(each.predict(columns)[0]) for each in self.resampled] * np.exp(noise)
        low, high = np.percentile(found, QUANTILES)
        return float(self.fit.predict(columns)[0]), float(low), float(high)

    @property
    def has_floor(self) -> bool:
        """Whether the runs say that the loss has a floor E above zero."""
        if "E" not in self.fit.form.coefficients:
            return False
        return self.interval(lambda each: each.named()["E"])[0] > IDENTIFIED * self.lowest


def law(form: Form, runs: Runs, count: int) -> Law:
    """Fits a form, and `count` times to as many runs drawn with repetition."""
    found = laws.fit(form, runs.columns, runs.losses)
    draw, resampled = np.random.default_rng(0), []
    for _ in range(count):
        drawn = runs.at(draw.integers(0, len(runs.names), len(runs.names)))
        resampled.append(laws.fit(form, drawn.columns, drawn.losses, near=found))
    errors = np.log(runs.losses / found.predict(runs.columns))
    return Law(found, tuple(resampled), errors, float(runs.losses.min()))


def forms_of(runs: Runs) -> list[Form]:
    """Returns the forms that a table can be fitted to: with and without E, and for data that repeats."""
    forms = [laws.of_size_and_data(runs.columns), laws.of_size_and_data(runs.columns, floor=False)]
    if (runs.columns["samples"] > 1.01 * runs.columns["unique"]).any():
        forms.append(laws.of_size_and_data(runs.columns, repeated=True, r_star=laws.R_STAR))
        forms.append(laws.of_size_and_data(runs.columns, repeated=True))
    return [form for form in forms if len(runs.names) >= len(form.exponents) + len(form.coefficients)]


@dataclass(frozen=True)
class Advice:
    """What to train for a budget."""

    parameters: float
    samples: float
    loss: tuple[float, float, float]
    """Predicted, with its 95 %."""
    beyond: float
    """The budget over the largest run's FLOPs."""


def refuse_one_size(runs: Runs, where: str) -> None:
    """Raises DataError if all runs have the same size or samples, of which no law can then be fitted."""
    for name in ("parameters", "samples"):
        values = runs.columns[name]
        if np.ptp(np.log(values)) < SAME:
            raise DataError(
                f"{where}: all {len(runs.names)} runs to fit have {values[0]:.4g} {name}, so nothing says "
                f"how the loss depends on them; add runs of other {name}"
            )


def advise(found: Law, runs: Runs, budget: float, unique: float | None = None) -> Advice | None:
    """Returns the size and the samples with the lowest predicted loss for `budget` FLOPs; None if there is no
    such size, because the law sees no gain in more parameters, or in more samples, from the least to the most
    of the runs.

    FLOPs of a sample are k N^p, fitted to the runs. `unique` samples exist; None: as many as are wanted.
    """
    from scipy.optimize import minimize_scalar

    if not (_gains(found, runs, "parameters") and _gains(found, runs, "samples")):
        return None
    n = np.log(runs.columns["parameters"])
    each = np.log(runs.columns["flops"] / runs.columns["samples"])
    power = float(np.polyfit(n, each, 1)[0]) if np.ptp(n) > 0.1 else 1.0
    offset = float((each - power * n).mean())

    def run(size: float) -> Columns:
        samples = np.array([budget / np.exp(offset + power * size)])
        own = samples if unique is None else np.minimum(samples, unique)
        return {"parameters": np.array([np.exp(size)]), "samples": samples, "unique": own}

    around = float(n.mean())
    best = minimize_scalar(
        lambda size: float(found.fit.predict(run(size))[0]),
        bounds=(around - SIZES, around + SIZES),
        method="bounded",
        options={"xatol": 1e-4},
    )
    if abs(best.x - around) > SIZES - 0.1:
        return None
    chosen = run(best.x)
    beyond = budget / float(runs.columns["flops"].max())
    return Advice(float(np.exp(best.x)), float(chosen["samples"][0]), found.forecast(chosen), beyond)


def _gains(found: Law, runs: Runs, name: str) -> bool:
    """Returns whether the law's loss falls from the runs' least to their most of `name`, the other being the
    mean of its logarithm.
    """
    columns = {own: np.full(2, np.exp(np.log(runs.columns[own]).mean())) for own in ("parameters", "samples")}
    columns[name] = np.array([runs.columns[name].min(), runs.columns[name].max()])
    least, most = found.fit.predict({**columns, "unique": columns["samples"]})
    return bool(least > LEAST_GAIN * most)


def batch_runs(runs: Runs) -> Runs | None:
    """Returns the largest group of runs that differ in nothing but the batch, if it has three batches."""
    logs = np.log([runs.columns[name] for name in ("parameters", "samples", "unique")])
    groups = [(np.abs(logs - own[:, None]) < SAME).all(axis=0) for own in logs.T]
    several = [rows for rows in groups if len(np.unique(runs.columns["batch"][rows].round(6))) >= 3]
    return runs.at(max(several, key=np.count_nonzero)) if several else None


def advise_batch(runs: Runs, beta: float) -> tuple[Fit, int]:
    """Fits both forms of the batch and returns the better, with the largest batch near the lowest loss."""
    forms = [laws.of_batch(runs.columns, kind, beta) for kind in ("negatives", "critical")]
    fits = [laws.fit(form, runs.columns, runs.losses) for form in forms]
    better = min(fits, key=lambda each: each.objective)
    batches = np.unique(runs.columns["batch"])
    predicted = better.predict({"batch": batches})
    return better, int(batches[predicted <= NEAR_BEST * predicted.min()].max())
