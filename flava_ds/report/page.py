"""Writes a run's report: one self-contained HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from flava_ds import config as configuration
from flava_ds.config import Config
from flava_ds.config.evaluation import EVALUATED
from flava_ds.evaluation.results import read_results
from flava_ds.evaluation.table import percent
from flava_ds.plain_text import public
from flava_ds.report import tables
from flava_ds.report.charts import Line, Mark, Scale, draw, smooth
from flava_ds.report.held_out import HeldOut
from flava_ds.report.suite_page import suite_links
from flava_ds.report.template import markup, render, write_page
from flava_ds.watching.evaluations import REFERENCE
from flava_ds.watching.run_log import RunLog, read_log

MOST_LIVE = 24
"""Numbers of evaluations while training that the page draws at most."""


PAGE = "report.html"
"""The name of a run's page in its folder."""


def write_report(run_path: Path, held_out: HeldOut | None = None, out: Path | None = None) -> Path:
    """Writes a run's page, `report.html` in its folder unless `out` names a file. Returns its path.

    A part that cannot be shown says what is missing and why. `held_out` is content besides the tasks; without
    it, the page lacks those sections.

    Raises: ConfigError if the run's config.json cannot be read.
    """
    run_path = Path(run_path)
    config, log = configuration.load(run_path / "config.json"), read_log(run_path / "log.jsonl")
    page = render(
        "page.html",
        filters={"percent": percent},
        config=config,
        header=log.header,
        steps=log.steps[-1]["step"] + 1 if log.steps else 0,
        held_out=held_out,
        tasks=tables.task_tables(read_results(run_path)),
        suites=suite_links(run_path, (out or run_path / PAGE).parent),
        live=live_charts(log),
        live_more=max(0, len(live_names(log)) - MOST_LIVE),
        losses=loss_charts(config, log, held_out.losses if held_out else {}),
        broken=not_finite(config, log),
        skipped_updates=log.steps[-1].get("skipped_updates") if log.steps else None,
        courses=course_charts(log),
        norms=norm_chart(config, log),
        weights=weight_charts(config, log),
        cosines=cosine_rows(config, log),
        facts=tables.facts(config, log, held_out.facts if held_out else []),
        config_json=json.dumps(public(configuration.to_dict(config)), indent=2),
        **(held_out.examples if held_out else {}),
    )
    return write_page(out or run_path / PAGE, page)


def loss_charts(config: Config, log: RunLog, held_out_losses: dict[str, float]) -> list[dict[str, Any]]:
    """Draws a chart per objective: logged losses, their moving average, guessing, and held-out loss."""
    charts = []
    for name in in_order(config, log.names("loss/")):
        steps, values = log.series(f"loss/{name}")
        if not values:
            continue
        held_out = held_out_losses.get(name)
        level = guessing_loss(config, name)
        title = title_of(config, name)
        words = (
            f"{title}: training loss from {values[0]:.2f} to {values[-1]:.2f} nats over {len(steps)} "
            "logged steps"
        )
        lines = [Line(steps, values, faint=True), Line(steps, smooth(values))]
        mark = None if held_out is None else Mark(steps[-1], held_out)
        charts.append(
            {
                "title": title,
                "first": values[0],
                "last": None if log.not_finite_from(f"loss/{name}") is not None else values[-1],
                "held_out": held_out,
                "svg": markup(draw(words, lines, level=level, mark=mark)),
            }
        )
    return charts


def not_finite(config: Config, log: RunLog) -> list[tuple[str, int]]:
    """Returns the losses that are not finite at the end of a run, as (title, step from which on)."""
    names = in_order(config, log.names("loss/"))
    steps = {title_of(config, name): log.not_finite_from(f"loss/{name}") for name in names}
    return [(title, step) for title, step in steps.items() if step is not None]


def in_order(config: Config, names: Sequence[str]) -> list[str]:
    """Sorts objectives in configuration order; those no longer configured come last."""
    places = {name: place for place, name in enumerate(config.objectives)}
    return sorted(names, key=lambda name: places.get(name, len(places)))


def title_of(config: Config, name: str) -> str:
    """Returns the title of an objective's charts."""
    return (config.objectives[name].title if name in config.objectives else None) or name


def guessing_loss(config: Config, name: str) -> float | None:
    """Returns the cross-entropy of uniform guessing; None without a fixed number of classes.

    The contrastive loss has none.
    """
    classes = config.objectives[name].classes(config) if name in config.objectives else None
    return None if classes is None else math.log(classes)


def course_charts(log: RunLog) -> list[dict[str, Any]]:
    """Draws learning rate, throughput and gradient norm over the steps, if logged."""
    wanted = (
        ("lr", "Learning rate", "", Scale(from_zero=True)),
        ("samples_per_second", "Throughput", "samples/s", Scale(from_zero=True)),
        ("grad_norm", "Gradient norm", "before clipping", Scale(logarithmic=True)),
    )
    charts = []
    for name, title, unit, scale in wanted:
        steps, values = log.series(name)
        if values:
            lines = (
                [Line(steps, values)]
                if name == "lr"
                else [Line(steps, values, faint=True), Line(steps, smooth(values))]
            )
            svg = draw(f"{title} {unit}, from {values[0]:.3g} to {values[-1]:.3g}", lines, scale)
            last = f"last {values[-1]:.3g} {unit}" if log.not_finite_from(name) is None else "last not finite"
            charts.append({"title": title, "last": last, "svg": markup(svg)})
    return charts


def live_names(log: RunLog) -> list[str]:
    """Returns the numbers of evaluations while training, TASK/NUMBER, that were ever finite."""
    return [name for name in log.names(EVALUATED) if log.series(EVALUATED + name)[1]]


def live_charts(log: RunLog) -> list[dict[str, Any]]:
    """Draws the numbers of tasks that ran while training, at most MOST_LIVE: of each task its first before
    any second one. The level is the model before its first step, if that was evaluated.
    """
    of_tasks: dict[str, list[str]] = {}
    for name in live_names(log):
        of_tasks.setdefault(name.partition("/")[0], []).append(name)
    by_rank = [name for row in zip_longest(*of_tasks.values()) for name in row if name is not None]
    shown, charts = set(by_rank[:MOST_LIVE]), []
    for name in (name for own in of_tasks.values() for name in own if name in shown):
        steps, values = log.series(EVALUATED + name)
        references = {of: log.series(f"{REFERENCE}{of}/{name}")[1] for of in ("start", "pixels")}
        start, pixels = (found[-1] if found else None for found in references.values())
        task, _, number = name.partition("/")
        number = number.replace("_", " ")
        words = f"{task} {number} while training, from {values[0]:.3g} to {values[-1]:.3g}"
        charts.append(
            {
                "title": task,
                "number": number,
                "first": values[0],
                "last": values[-1],
                "start": start,
                "pixels": pixels,
                "svg": markup(draw(words, [Line(steps, values)], level=start)),
            }
        )
    return charts


def norm_chart(config: Config, log: RunLog) -> list[dict[str, Any]]:
    """Draws each objective's gradient norm on the shared trunk, on one scale; empty if not measured."""
    charts = _on_one_scale(config, log, "gradient_norm/", "gradient norm on the shared trunk,")
    return [chart | {"encoders": last_by_encoder(log, chart["name"])} for chart in charts]


def weight_charts(config: Config, log: RunLog) -> list[dict[str, Any]]:
    """Draws each objective's weight, on one scale; empty if the run does not, or no longer, balance them."""
    return [] if config.balance is None else _on_one_scale(config, log, "weight/", "weight from {first:.3g},")


def _on_one_scale(config: Config, log: RunLog, prefix: str, words: str) -> list[dict[str, Any]]:
    """Draws a number of each objective, from zero to the largest of all; `words` says what it is."""
    series = {name: log.series(prefix + name) for name in in_order(config, log.names(prefix))}
    top = max((max(values, default=0.0) for _, values in series.values()), default=0.0)
    charts = []
    for name, (steps, values) in series.items():
        if values:
            title = title_of(config, name)
            svg = draw(
                f"{title}: {words.format(first=values[0])} last {values[-1]:.3g}",
                [Line(steps, values)],
                Scale(from_zero=True, top=1.08 * top or None),
            )
            charts.append({"name": name, "title": title, "last": values[-1], "svg": markup(svg)})
    return charts


def cosine_rows(config: Config, log: RunLog) -> list[tuple[str, str, str, float, float]]:
    """Returns (objective, other, encoder, mean cosine of their gradients, share of steps below 0); empty if
    not measured.
    """
    found = []
    for name in log.names("gradient_cosine/"):
        first, second, encoder = name.split("/")
        _, values = log.series(f"gradient_cosine/{name}")
        if values:
            titles = title_of(config, first), title_of(config, second)
            conflicts = sum(value < 0 for value in values) / len(values)
            found.append((*titles, encoder.removesuffix("_encoder"), sum(values) / len(values), conflicts))
    return found


def last_by_encoder(log: RunLog, objective: str) -> list[tuple[str, float]]:
    """Returns the last gradient norm of an objective on each encoder that it reaches, as (encoder, norm)."""
    names = log.names(f"encoder_gradient_norm/{objective}/")
    found = [
        (name.removesuffix("_encoder"), log.series(f"encoder_gradient_norm/{objective}/{name}")[1])
        for name in names
    ]
    return [(name, values[-1]) for name, values in found if values and values[-1] > 0]
