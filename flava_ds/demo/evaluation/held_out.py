"""Collects a page's content about the demo's held-out data, for runs trained on the demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flava_ds import config as configuration
from flava_ds.config import Config
from flava_ds.demo.evaluation import examples, tables
from flava_ds.demo.evaluation.evaluator import RESULT, find_data
from flava_ds.demo.evaluation.inputs import Inputs, build_inputs
from flava_ds.errors import UserError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.opening import open_model
from flava_ds.report.held_out import HeldOut


def held_out_of(run_path: Path) -> HeldOut | None:
    """Returns a page's content about held-out data; None for a run trained on other data.

    A part that cannot be shown says what is missing and why.

    Raises: ConfigError if the run's config.json cannot be read.
    """
    config = configuration.load(Path(run_path) / "config.json")
    evaluation = read_evaluation(Path(run_path) / RESULT)
    try:
        found: Path | UserError | None = find_data(config)
    except UserError as error:
        found = error
    if found is None:
        return None
    shown = collect_examples(run_path, config, evaluation, found)
    if not evaluation:
        return HeldOut(step=None, examples=shown)
    metrics = evaluation["metrics"]
    seconds = [
        (name.replace("_", " "), f"{value:.1f} s") for name, value in evaluation.get("seconds", {}).items()
    ]
    return HeldOut(
        step=evaluation["step"],
        headlines=tables.headlines(metrics),
        sections=tables.sections(metrics),
        losses=masked_losses(metrics),
        left_out=evaluation.get("left_out", {}),
        facts=[
            *seconds,
            ("total", f"{evaluation['total_s']:.1f} s"),
            ("data", evaluation.get("data_checksum", "")[:16]),
        ],
        examples=shown,
    )


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Reads evaluation.json; returns None if the run has not been evaluated."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "metrics" in found else None


def masked_losses(metrics: dict[str, float]) -> dict[str, float]:
    """Returns each masked objective's held-out loss."""
    parts = {name: name.split("/") for name in metrics}
    return {
        words[1]: metrics[name]
        for name, words in parts.items()
        if words[0] == "masked" and words[2:] == ["loss_nats"]
    }


def collect_examples(
    run_path: Path, config: Config, evaluation: dict[str, Any] | None, found: Path | UserError
) -> dict[str, Any]:
    """Runs the model on single samples; a part that fails for a user-fixable reason becomes that reason."""
    parts: dict[str, Callable[[FrozenModel, Inputs], Any]] = {
        "by_caption": examples.retrieve_images,
        "by_image": examples.retrieve_captions,
        "pictures": examples.reconstruct,
        "drawings": examples.draw,
        "written": examples.write,
        "glosses": lambda model, inputs: examples.fill_texts(model, inputs, "mlm"),
        "captions": lambda model, inputs: examples.fill_texts(model, inputs, "mmm_text"),
    }
    shown: dict[str, Any] = {"missing_parts": {}, **{name: [] for name in parts}}
    recorded = Path(evaluation["data"]) if evaluation and "data" in evaluation else None
    try:
        model = open_model(run_path).frozen()
        if recorded is None or not recorded.is_dir():
            if isinstance(found, UserError):
                raise found
            recorded = found
        inputs = build_inputs(config, recorded)
    except UserError as error:
        return shown | {"missing_parts": dict.fromkeys(parts, str(error))}
    for name, part in parts.items():
        try:
            shown[name] = part(model, inputs)
        except UserError as error:
            shown["missing_parts"][name] = str(error)
    return shown
