"""A run's facts and task results as rows of the page's tables."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from flava_ds.config import Config
from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.results import samples_of
from flava_ds.evaluation.table import result_rows
from flava_ds.watching.run_log import RunLog


@dataclass(frozen=True)
class TaskTable:
    """A task on one set of samples: rows of number, value, samples, published and step."""

    task: str
    samples: str
    """Which they are; empty if that is not known."""
    rows: tuple[tuple[str, ...], ...]


def task_tables(results: dict[str, list[dict[str, Any]]]) -> list[TaskTable]:
    """Returns the results in evaluations.json: of a task on one set of samples each number at every step, and
    of averages of the weights there, the latest result of each.
    """
    sets: dict[tuple[str, str, Any], dict[tuple[int, str], dict[str, Any]]] = {}
    for task, found in results.items():
        for result in found:
            of_steps = sets.setdefault((task, samples_of(result), result.get("fingerprint")), {})
            of_steps.setdefault((result.get("step") or 0, result.get("average") or ""), result)
    tables = []
    for (task, samples, _), of_steps in sets.items():
        rows = [row for _, result in sorted(of_steps.items()) for row in _rows_of(task, result)]
        numbers = list(dict.fromkeys(number for number, *_ in rows))
        rows.sort(key=lambda row: numbers.index(row[0]))
        tables.append(TaskTable(task, samples, tuple(rows)))
    return tables


def _rows_of(task: str, result: dict[str, Any]) -> list[tuple[str, ...]]:
    scores = {
        name: Score(**{key: value for key, value in score.items() if key != "published"})
        for name, score in result["scores"].items()
    }
    step = "" if result.get("step") is None else f"{result['step']:,}"
    step += f" ({result['average']})" if result.get("average") else ""
    family, departures = result.get("family", ""), result.get("departures", ())
    return [(*row, step) for _, *row in result_rows(task, scores, family, departures)]


def facts(config: Config, log: RunLog, held_out: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Returns hardware, software and settings: table title -> rows; `held_out` are those of an evaluation."""
    training, model, header = config.training, config.model, log.header
    run = [("model", str(model.type))]
    for field in dataclasses.fields(model):
        part = getattr(model, field.name)
        if hasattr(part, "num_hidden_layers"):
            patches = f", patches of {part.patch_size} px" if hasattr(part, "patch_size") else ""
            layers = f"{part.num_hidden_layers} layer{'s' * (part.num_hidden_layers != 1)}"
            shape = f"{layers}, width {part.hidden_size}"
            run.append((field.name, f"{shape}, {part.num_attention_heads} heads{patches}"))
    predicts_codes = any(own.predicts_codes for own in config.objectives.values())
    codebook = f"; codebook of {config.codebook.vocab_size}" if predicts_codes else ""
    optimizer, schedule, zero = config.optimizer, config.schedule, config.engine.deepspeed_config
    decay = f"weight decay {optimizer.weight_decay:g}"
    steps = f"{training.total_steps:,} steps, {schedule.warmup_steps:,} of warm-up"
    numerics = f"{training.precision}, clipping {training.gradient_clipping:g}"
    run += [("pictures", f"{model.image_size} px{codebook}")] if model.image_size else []
    run += [
        ("batch", ", ".join(f"{name} {config.global_batch_size(name)}" for name in config.data.sources)),
        ("sources", ", ".join(f"{name} {source.weight:g}" for name, source in config.data.sources.items())),
        ("optimizer", f"{optimizer.label}, lr {optimizer.lr:g}, {decay}"),
        ("schedule", f"{steps}, {schedule.type}"),
        ("numerics", f"{numerics}, DeepSpeed {zero}, seed {config.seed}"),
    ]
    run += [
        ("rollback", f"from step {back['at']} to {back['to']}: {back['reason']}")
        for back in header.get("rollbacks", [])
    ]
    tables = {"Configuration": run}
    keys = {"Versions": "versions", "Hardware": "hardware", "Source": "git", "Kernels": "kernels"}
    for title, key in keys.items():
        if isinstance(header.get(key), dict):
            known = ((name, value) for name, value in header[key].items() if value is not None)
            tables[title] = [(name.replace("_", " "), plain(value)) for name, value in known]
    if "Kernels" in tables:
        tables["Kernels"] = _sharing(tables["Kernels"])
    if held_out:
        tables["Evaluation"] = held_out
    return tables


def _sharing(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns a row for each value, with the operators that share it."""
    names: dict[str, list[str]] = {}
    for name, value in rows:
        names.setdefault(value, []).append(name)
    return [("all operators" if len(names) == 1 else ", ".join(own), value) for value, own in names.items()]


def plain(value: Any) -> str:
    """Formats a number, a flag or a word of the log's header."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:80]
