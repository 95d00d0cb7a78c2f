"""`flava-ds laws`: fits scaling laws to a sweep, or to any table of runs, and says what they recommend."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from flava_ds.commands.local_path import report_path
from flava_ds.errors import DataError, UserError, number_of

COLUMNS = {
    "loss": "loss/global_contrastive",
    "parameters": "parameters",
    "samples": "samples",
    "unique": "unique_samples",
    "batch": "batch",
    "flops": "flops",
}
"""What a law needs -> the column of a sweep's results that has it."""
KINDS = {
    "loss": "loss",
    "parameters": "parameters N",
    "samples": "samples D, repetitions counted",
    "unique": "different samples among them",
    "batch": "samples of a step",
    "flops": "training FLOPs",
}
"""What those columns hold, for --help."""
NEEDED_RUNS = 4


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    command.add_argument(
        "runs", metavar="SWEEP_OR_CSV", type=Path, help="a sweep's folder, or a table of runs"
    )
    for what, column in COLUMNS.items():
        command.add_argument(
            f"--{what}",
            default=None,
            metavar="COLUMN",
            help=f"column of the {KINDS[what]} (default: {column})",
        )
    command.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="PART",
        help="runs of this part alone; can be repeated",
    )
    command.add_argument(
        "--error", metavar="COLUMN", help="also fit a downstream error that saturates, by compute"
    )
    command.add_argument(
        "--budget", type=float, metavar="FLOPS", help="recommend what to train for so many FLOPs"
    )
    command.add_argument(
        "--data", type=float, metavar="SAMPLES", help="with --budget: samples that exist (default: enough)"
    )
    command.add_argument(
        "--bootstrap", type=int, default=200, metavar="N", help="resampled fits for intervals (default: 200)"
    )
    command.add_argument("--json", type=report_path, metavar="FILE", help="write all numbers as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the laws of a table of runs; returns the exit status. Raises: UserError."""
    if options.bootstrap < 20:
        raise UserError(f"--bootstrap {options.bootstrap}: use at least 20")
    for name in ("budget", "data"):
        if (value := getattr(options, name)) is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value:g}: use a number above 0")
    if options.data is not None and options.budget is None:
        raise UserError("--data is for --budget; add it")
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise UserError("laws need scipy; install it with `pip install 'flava_ds[eval]'`") from error
    from flava_ds.scaling import findings

    rows, where, lower = rows_at(options.runs)
    parts = [set(str(row.get("parts", "")).split()) for row in rows]
    for name in options.leave_out:
        if name not in set().union(*parts):
            known = ", ".join(sorted(set().union(*parts))) or "none"
            raise UserError(f"--leave-out {name}: {where} has no such part; there is {known}")
    rows = [row for row, own in zip(rows, parts, strict=True) if not own or own - set(options.leave_out)]
    named = {what: getattr(options, what) or column for what, column in COLUMNS.items()}
    if options.loss is None and rows and (metric := rows[0].get("metric")):
        named["loss"] = metric
    filled = {name for row in rows for name, value in row.items() if value not in ("", None)}
    refuse_rising(named["loss"], options, where, lower, filled)
    needed = [what for what in COLUMNS if what in findings.NEEDED or getattr(options, what)]
    runs = findings.runs_of(rows, where, named, needed)
    told, found = describe(runs, options)
    print(f"{where}: {len(runs.names)} runs, {named['loss']}\n" + "\n".join(told), flush=True)
    try:
        if options.error:
            lines, found["error"] = describe_error(
                findings.runs_of(rows, where, {**named, "loss": options.error})
            )
            print("\n".join(lines))
    finally:  # the laws took minutes, and stand without that of the error
        if options.json is not None:
            from flava_ds.storage.atomic import write_json

            write_json(options.json, found)
    return 0


def rows_at(place: Path) -> tuple[list[dict[str, Any]], str, set[str] | None]:
    """Reads the rows of a sweep's folder or of a CSV file, says where they are, and of which of their tasks'
    numbers lower is better, if they tell; a CSV does not.
    """
    from flava_ds.scaling.findings import read_csv

    if place.is_dir():
        from flava_ds.scaling.sweep import Sweep

        sweep = Sweep.open(place)
        return sweep.rows(), str(place), sweep.lower_is_better() or None
    if not place.is_file():
        raise UserError(f"{place}: no such sweep or table; `flava-ds sweep SPEC` makes a sweep's folder")
    return [dict(row) for row in read_csv(place)], str(place), None


def refuse_rising(
    loss: str, options: argparse.Namespace, where: str, lower: set[str] | None, filled: set[str]
) -> None:
    """Raises UserError for a loss or an error of which more is better: a law would fit its fall, and advise
    what makes it smallest. Where nothing tells, who names a task's number says that it falls. What is not
    `filled` is left to whoever reads it.
    """
    from flava_ds.config.evaluation import EVALUATED, higher_is_better

    said = {name for name in (options.loss, options.error) if name and name.startswith(EVALUATED)}
    for name, option in ((loss, "--loss"), (options.error, "--error")):
        if name in filled and higher_is_better(name, said if lower is None else lower):
            raise UserError(
                f"{where}: more of '{name}' is better, and a law is of a number that falls; "
                f"name one by {option}"
            )


def describe(runs: Any, options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Returns what the runs say, as lines and as plain values."""
    from flava_ds.scaling import findings

    main = findings.of_main_batch(runs)
    fitted, rest = runs.at(main & ~runs.held_out), runs.at(main & runs.held_out)
    if len(fitted.names) < NEEDED_RUNS:
        left = number_of(len(fitted.names), "run")
        raise UserError(
            f"{options.runs}: {left} of one batch besides the {len(rest.names)} of most FLOPs, or named, "
            f"that are held out; a law of size and data needs at least {NEEDED_RUNS}, better a dozen"
        )
    findings.refuse_one_size(fitted, str(options.runs))
    lines, found = [], {"fitted_to": fitted.names, "held_out": rest.names, "laws": []}
    for form in findings.forms_of(fitted):
        law = findings.law(form, fitted, options.bootstrap)
        own, numbers = describe_law(law, rest)
        lines += own
        found["laws"].append(numbers)
        if options.budget is not None:
            advice = findings.advise(law, runs, options.budget, options.data)
            lines.append(f"    for {options.budget:.3g} FLOPs: {said_of(advice)}")
            if advice is not None and not form.repeats and advice.samples > (options.data or math.inf):
                lines.append(
                    f"    {advice.samples / options.data:.3g} times the samples that exist: this law takes "
                    "repeated samples for new ones, which --data does not change"
                )
            numbers["advice"] = None if advice is None else vars(advice)
    if (batches := findings.batch_runs(runs)) is not None:
        beta = found["laws"][0]["numbers"]["beta"] if found["laws"] else 0.3
        better, largest = findings.advise_batch(batches, beta)
        said = ", ".join(f"{name} {value:.4g}" for name, value in better.named().items())
        lines.append(f"  batch, {len(batches.names)} runs of as many samples: {better.form.title}: {said}")
        lines.append(f"    largest batch within 1 % of the lowest predicted loss: {largest}")
        found["batch"] = {"form": better.form.title, "numbers": better.named(), "largest": largest}
    return lines, found


def said_of(advice: Any) -> str:
    """Formats what to train for a budget."""
    if advice is None:
        return "no advice; these runs do not say that more parameters and more samples both help"
    loss, low, high = advice.loss
    return (
        f"{advice.parameters:,.3g} parameters, {advice.samples:,.3g} samples; predicted loss {loss:.4g} "
        f"({low:.4g} to {high:.4g}); {advice.beyond:.3g} times the largest run"
    )


def describe_law(law: Any, held_out: Any) -> tuple[list[str], dict[str, Any]]:
    """Returns a law's numbers with intervals, and what it says of the runs that it has not seen."""
    values = law.fit.named()
    ranges = {name: law.interval(lambda each, name=name: each.named()[name]) for name in values}
    shown = ", ".join(
        f"{name} {value:.4g} ({ranges[name][0]:.4g} to {ranges[name][1]:.4g})"
        for name, value in values.items()
    )
    lines = [f"  {law.fit.form.title}: {shown}; objective {law.fit.objective:.4g}"]
    if "E" in values and not law.has_floor:
        lines.append("    E is not identified: these runs fit without a floor, too; do not read it as one")
    told = []
    for row, name in enumerate(held_out.names):
        one = {column: own[row : row + 1] for column, own in held_out.columns.items()}
        middle, low, high = law.forecast(one)
        real = float(held_out.losses[row])
        inside = "inside" if low <= real <= high else "outside"
        lines.append(
            f"    held out {name}: predicted {middle:.4g} ({low:.4g} to {high:.4g}), measured {real:.4g}, "
            f"{middle / real - 1:+.1%}, {inside} the interval"
        )
        told.append({"run": name, "predicted": middle, "low": low, "high": high, "measured": real})
    numbers = {"form": law.fit.form.title, "numbers": values, "intervals": ranges, "held_out": told}
    return lines, {**numbers, "objective": law.fit.objective, "floor_identified": law.has_floor}


def describe_error(runs: Any) -> tuple[list[str], dict[str, Any]]:
    """Returns the law of a downstream error along the runs that none of less compute beats.

    Raises: DataError for too few of them.
    """
    from flava_ds.scaling import laws

    best = runs.at(laws.frontier(runs.columns["flops"], runs.losses))
    try:
        found = laws.fit(laws.of_error(best.columns), best.columns, best.losses)
    except DataError as error:
        raise DataError(
            f"--error: no run of less compute beats {len(best.names)} of {len(runs.names)} runs, which alone "
            f"are fitted: {error}"
        ) from error
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.named().items())
    lines = [f"  error by compute, {len(best.names)} runs that none beats: {found.form.title}: {numbers}"]
    return lines, {"form": found.form.title, "numbers": found.named(), "runs": best.names}
