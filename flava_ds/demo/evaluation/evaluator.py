"""Evaluates a run on the demo's held-out data: every measurement, one result file."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from flava_ds.checkpoints.files import name_of
from flava_ds.config import Config
from flava_ds.demo.evaluation import (
    drawing,
    linear_probe,
    masked,
    matching,
    pixel_baseline,
    retrieval,
    writing,
    zero_shot,
)
from flava_ds.demo.evaluation.base import Measurement
from flava_ds.demo.evaluation.inputs import Inputs, build_inputs
from flava_ds.errors import UserError
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.opening import open_model
from flava_ds.recipes.demo import DATA
from flava_ds.storage.atomic import write_json
from flava_ds.watching.run_log import logged_losses, read_log

log = logging.getLogger(__name__)

MEASUREMENTS: dict[str, Measurement] = {
    "zero_shot": zero_shot.measure,
    "masked": masked.measure,
    "linear_probe": linear_probe.measure,
    "matching": matching.measure,
    "retrieval": retrieval.measure,
    "pixel_baseline": pixel_baseline.measure,
    "drawing": drawing.measure,
    "writing": writing.measure,
}
"""In running order: what the gates need comes first, in case time runs out."""
RESULT = "evaluation.json"


def evaluate_run(run_path: Path, *, data: Path | None = None, limit_s: float | None = None) -> dict[str, Any]:
    """Evaluates a run's latest checkpoint as `measure_run`, and writes evaluation.json into its folder."""
    result = measure_run(run_path, data=data, limit_s=limit_s)
    write_result(run_path, result)
    return result


def measure_run(run_path: Path, *, data: Path | None = None, limit_s: float | None = None) -> dict[str, Any]:
    """Evaluates a run's latest checkpoint. Returns the result.

    `data` is the folder of the demo's data set, by default the one that the run trained on. After `limit_s`
    seconds no further measurement starts; those left out are listed.

    Raises: CheckpointError if the run has no checkpoint that fits; ConfigError and DataError on unusable
    inputs; UserError if the run trained on other data.
    """
    start = time.monotonic()
    run_path = Path(run_path)
    opened = open_model(run_path)
    root = find_data(opened.config) if data is None else data
    step = opened.described.step
    if root is None or step is None:  # a model without steps is no run's
        raise UserError(
            f"{run_path}: did not train on the demo's data, so the held-out drawings cannot evaluate it"
        )
    inputs = build_inputs(opened.config, root)
    deadline = None if limit_s is None else start + limit_s
    result: dict[str, Any] = {"run": opened.config.name, "checkpoint": name_of(step), "step": step}
    result |= evaluate(opened.frozen(), inputs, deadline=deadline)
    result["losses"] = logged_losses(read_log(run_path / "log.jsonl"))
    result |= {"data": str(inputs.root.resolve()), "data_checksum": inputs.checksum}
    result["total_s"] = round(time.monotonic() - start, 2)
    return result


def write_result(run_path: Path, result: dict[str, Any]) -> None:
    """Writes a result as evaluation.json into a run's folder, where its report looks for it."""
    write_json(Path(run_path) / RESULT, result)


def evaluate(model: FrozenModel, inputs: Inputs, *, deadline: float | None = None) -> dict[str, Any]:
    """Runs every measurement. Returns metrics, seconds, and what was left out and why.

    `deadline` is a time of time.monotonic() after which none starts.
    """
    metrics: dict[str, float] = {}
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    if inputs.codebook is None:
        left_out["masked images"] = inputs.codebook_problem
    else:
        inputs.codebook.to(model.device)
    for name, measure in MEASUREMENTS.items():
        start = time.monotonic()
        if deadline is not None and start >= deadline:
            left_out[name] = "the time limit was reached"
            continue
        try:
            metrics |= measure(model, inputs)
        except Lacking as reason:
            left_out[name] = str(reason)
        seconds[name] = round(time.monotonic() - start, 2)
        log.info("evaluated %s in %.1f s", name, seconds[name])
    return {"metrics": metrics, "seconds": seconds, "left_out": left_out}


def find_data(config: Config) -> Path | None:
    """Returns the demo data set's folder that a run's pairs come from; None if it trained on other data.

    If the data of a demo run has been removed, unpacks the committed data into the user's cache.

    Raises: DataError if the package lacks its data.
    """
    for source in config.data.sources.values():
        folder = Path(source.shards).parent
        if source.kind == "pair" and (folder / "concepts.json").is_file():
            return folder
        if source.kind == "pair" and folder == DATA:
            from flava_ds.demo.dataset import unpack

            return unpack()
    return None
