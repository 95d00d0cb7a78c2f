"""Trains and measures one run of a campaign."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds import config as configuration
from flava_ds.campaigns.campaign import RANKS, Run, code
from flava_ds.campaigns.course import checkpoints_on_the_way, losses_of
from flava_ds.storage.atomic import write_json, write_whole

if TYPE_CHECKING:
    from flava_ds.demo.evaluation.inputs import Inputs
    from flava_ds.evaluation.frozen_model import FrozenModel

MEASURED = "measured"
"""Of a run's folder: what has been measured of it so far."""
SETTINGS = "settings.txt"
"""Of a run's folder: the hash of the settings that it is trained with."""


def perform(run: Run) -> None:
    """Trains and measures one run and writes its result. Raises: UserError when training fails."""
    from flava_ds.campaigns import wider
    from flava_ds.checkpoints.inheritance import finished
    from flava_ds.commands.stages import with_inherited
    from flava_ds.demo.dataset import unpack
    from flava_ds.demo.phases import cpu_launch
    from flava_ds.demo.run import describe_machine
    from flava_ds.demo.training import follow_training, wait_for_folder
    from flava_ds.ranks.launch import provide_demo_data
    from flava_ds.recipes.demo import DATA
    from flava_ds.scaling.results import results
    from flava_ds.watching.run_log import read_log

    settings, begun = run.settings, time.monotonic()
    unpack(DATA)
    wider.provide(run.domains)
    print(f"\n== {run.row}, seed {run.seed}, in {run.folder}", flush=True)
    _begin_anew_if_other(run)
    for stage in run.sequence.stages:
        if finished(stage.config) is not None:
            continue
        shutil.rmtree(run.folder / MEASURED, ignore_errors=True)  # of weights that are gone
        provide_demo_data(stage.config)
        config = with_inherited(run.sequence, stage) if stage.inherits else run.table.begin(run, stage)
        file = run.folder / f"{stage.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        configuration.save(config, file)
        wait_for_folder(config.run_path)
        launch = cpu_launch([], RANKS, str(file))
        follow_training(launch, config.run_path, config.training.total_steps)
    trained = time.monotonic()
    logged = [results(read_log(stage.config.run_path / "log.jsonl")) for stage in run.sequence.stages]
    result = {
        "row": run.row,
        "seed": run.seed,
        "work": run.work,
        "settings": settings,
        "code": code(),
        "steps": {stage.name: stage.config.training.total_steps for stage in run.sequence.stages},
        "training_flops": sum(own["flops_with_targets"] for own in logged),
        "training_seconds": round(sum(own["seconds"] for own in logged)),
        "seconds_since_last_start": {"train": round(trained - begun)},
        "machine": describe_machine(),
        "added": run.added,
    } | _measured(run)
    if run.table.along:
        result["course"] = {
            "losses": losses_of(run.sequence.stages[-1].config.run_path),
            "quarters": _measured_on_the_way(run),
        }
    result["seconds_since_last_start"]["measure"] = round(time.monotonic() - trained)
    write_json(run.file, result, indent=None)
    shutil.rmtree(run.folder, ignore_errors=not run.sequence.stages)
    print(
        f"{run.file}: " + ", ".join(f"{k} {m['value']:.3f}" for k, m in result["metrics"].items()), flush=True
    )


def _begin_anew_if_other(run: Run) -> None:
    """Deletes what was trained with other settings; a finished stage would be taken as it is otherwise."""
    stamp = run.folder / SETTINGS
    if stamp.is_file() and stamp.read_text(encoding="utf-8") != run.settings:
        print(f"{run.folder}: was trained with other settings, and is begun anew", flush=True)
        shutil.rmtree(run.folder)
    if run.sequence.stages:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_whole(stamp, run.settings)


def _measured(run: Run) -> dict[str, Any]:
    stages = run.sequence.stages
    path = stages[-1].config.run_path if stages else None
    return _measured_at(run, path, run.domains + run.table.added)


def _measured_on_the_way(run: Run) -> list[dict[str, float]]:
    """Returns the values of each metric after every quarter of the last stage but the last one."""
    folders = checkpoints_on_the_way(run.sequence.stages[-1].config)
    found = [_measured_at(run, folder, run.table.along)["metrics"] for folder in folders]
    return [{name: metric["value"] for name, metric in metrics.items()} for metrics in found]


def _measured_at(run: Run, path: Path | None, domains: tuple[str, ...]) -> dict[str, Any]:
    """Measures a run or one of its checkpoints, or without one a row's model that is not trained.

    Each domain's part is kept in the run's folder, so that a command which was stopped goes on after it.
    """
    from flava_ds.campaigns.measure import measure

    stamp = [run.settings, run.added, code()["sources"]]
    folder = run.folder / MEASURED / (path.name if path is not None else run.row)
    names = ("metrics", "counts", "lacks") if run.table.some_lack else ("metrics", "counts")
    parts: list[dict[str, Any]] = []
    model: tuple[FrozenModel, Inputs] | None = None
    for number, domain in enumerate(domains, start=1):
        file = folder / f"{domain}.json"
        part = _kept(file, stamp)
        if part is None:
            print(f"measuring {path or run.row}: {domain}, {number} of {len(domains)}", flush=True)
            model = model or _opened(run, path)
            part = measure(*model, (domain,), some_lack=run.table.some_lack)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps({"stamp": stamp, "part": part}))
        parts.append(part)
    return {name: {key: own for part in parts for key, own in part[name].items()} for name in names}


def _kept(file: Path, stamp: list[Any]) -> dict[str, Any] | None:
    """Returns what was measured before under the same stamp, None for nothing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found["part"] if found.get("stamp") == stamp else None


def _opened(run: Run, path: Path | None) -> tuple[FrozenModel, Inputs]:
    """Opens the model to measure, and what it is measured on."""
    import torch

    from flava_ds.demo.dataset import unpack
    from flava_ds.demo.evaluation.inputs import build_inputs
    from flava_ds.evaluation.opening import open_model
    from flava_ds.recipes.demo import DATA, demo

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(RANKS)
    if path is None:
        config, model = demo(), run.table.untrained[run.row]()
    else:
        opened = open_model(path, device="cpu", precision="fp32")
        config, model = opened.config, opened.frozen()
    return model, build_inputs(config, unpack(DATA))
