"""Evaluates a run on held-out data: every evaluator, one result file."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flava_ds import config as configuration
from flava_ds.checkpoints.files import latest, place_of, step_of
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import load_weights
from flava_ds.config import Config
from flava_ds.errors import CheckpointError
from flava_ds.evaluation.base import Evaluator, Unavailable
from flava_ds.evaluation.encoding import FrozenModel
from flava_ds.evaluation.inputs import Inputs, build_inputs
from flava_ds.evaluation.linear_probe import LinearProbe
from flava_ds.evaluation.masked import Masked
from flava_ds.evaluation.matching import Matching
from flava_ds.evaluation.pixel_baseline import PixelBaseline
from flava_ds.evaluation.retrieval import Retrieval
from flava_ds.evaluation.summary import aims, gates, table
from flava_ds.evaluation.zero_shot import ZeroShot
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.watching.run_log import logged_losses, read_log

if TYPE_CHECKING:
    from flava_ds.demo.dataset import DemoData

__all__ = ["EVALUATORS", "Evaluator", "aims", "evaluate", "evaluate_run", "find_data", "gates", "load_run", "table"]

log = logging.getLogger(__name__)

EVALUATORS: tuple[type[Evaluator], ...] = (ZeroShot, Masked, LinearProbe, Matching, Retrieval, PixelBaseline)
"""In the order in which they run: what the gates need comes first, in case time runs out."""


def evaluate_run(run_path: Path, *, data: DemoData | None = None, limit_s: float | None = None) -> dict[str, Any]:
    """Evaluates a run's latest checkpoint on the held-out demo data, writes evaluation.json into the run's folder and returns it.

    `data` defaults to the data set that the run's pairs lie in, else to the committed one, unpacked.
    After `limit_s` seconds no further evaluator starts; what was left out is listed.

    Raises: CheckpointError when the run has no checkpoint that fits; ConfigError and DataError on unusable inputs.
    """
    start = time.monotonic()
    run_path = Path(run_path)
    config, module, checkpoint = load_run(run_path)
    inputs = build_inputs(config, find_data(config) if data is None else Path(data.root))
    deadline = None if limit_s is None else start + limit_s
    result = {"run": config.name, "checkpoint": checkpoint.name, "step": step_of(checkpoint.name), **evaluate(module, inputs, deadline=deadline)}
    result["losses"] = logged_losses(read_log(run_path / "log.jsonl"))
    result |= {"data": str(inputs.root.resolve()), "data_checksum": inputs.checksum}
    result["total_s"] = round(time.monotonic() - start, 2)
    temporary = run_path / f".evaluation.json.{os.getpid()}"
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(run_path / "evaluation.json")
    return result


def evaluate(module: FlavaTask, inputs: Inputs, *, deadline: float | None = None) -> dict[str, Any]:
    """Runs every evaluator on a model: the metrics, the seconds that each took, and what was left out and why.

    `deadline` is a time of time.monotonic() after which none starts.
    """
    model = FrozenModel(module, inputs)
    metrics: dict[str, float] = {}
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    if inputs.codebook is None:
        left_out["masked images"] = inputs.codebook_problem
    for evaluator in EVALUATORS:
        start = time.monotonic()
        if deadline is not None and start >= deadline:
            left_out[evaluator.name] = "the time limit was reached"
            continue
        try:
            metrics |= evaluator(inputs).run(model)
        except Unavailable as reason:
            left_out[evaluator.name] = str(reason)
        seconds[evaluator.name] = round(time.monotonic() - start, 2)
        log.info("evaluated %s in %.1f s", evaluator.name, seconds[evaluator.name])
    return {"metrics": metrics, "seconds": seconds, "left_out": left_out}


def load_run(run_path: Path) -> tuple[Config, FlavaTask, Place]:
    """Rebuilds a run's model from its config.json and loads its latest checkpoint, on the GPU if there is one.

    A run trained in bf16 is evaluated in bf16: these are the numbers that it trained with, in a third of the time.

    Raises: CheckpointError when there is no checkpoint or it was made for another model.
    """
    config = configuration.load(run_path / "config.json")
    checkpoint = latest(place_of(run_path, config))
    if checkpoint is None:
        raise CheckpointError(f"{run_path}: no checkpoint there; train further: one is written every checkpoint.every_steps and at the end")
    module = build_task(config)
    try:
        module.load_state_dict(load_weights(checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: does not fit the model of {run_path / 'config.json'} ({' '.join(str(error).split())[:300]})") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    return config, module.to(device, dtype).eval().requires_grad_(False), checkpoint


def find_data(config: Config) -> Path:
    """Returns the folder of the demo data set: beside the shards of the run's pairs, else the committed data, unpacked into the user's cache.

    Raises: DataError when the package lacks its data.
    """
    for source in config.data.sources.values():
        if source.kind == "pair" and (Path(source.shards).parent / "concepts.json").is_file():
            return Path(source.shards).parent
    from flava_ds.demo.dataset import unpack  # here, because evaluation stands below the demo

    return unpack().root
