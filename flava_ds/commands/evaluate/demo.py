"""`evaluate` without a task: the demo's evaluation."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from flava_ds.commands.evaluate.common import keep, tell_user
from flava_ds.commands.runs import require_model
from flava_ds.errors import UserError
from flava_ds.plain_text import without_secrets

NEED_A_TASK = (
    *("data", "regions", "split", "splits", "limit", "device", "precision", "average"),
    *("features", "out", "keep", "keep_weights", "own_head", "head_classes"),
)
"""Options that do nothing without one."""


def run_demo_evaluation(options: argparse.Namespace) -> int:
    """Evaluates a demo run on the demo's held-out data; for any other run, lists the available tasks.

    Raises: UserError.
    """
    given = [name for name in NEED_A_TASK if getattr(options, name) not in (None, False)]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} requires --task; --list shows the tasks")
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.methods import METHODS

    own = f"on data of your own: {', '.join(METHODS)}"
    tasks = f"tasks for --task: {own}; {registry.overview(registry.tasks())}"
    if not isinstance(options.model, Path):
        raise UserError(f"{without_secrets(options.model)}: is not on this machine, so name a task. {tasks}")
    require_model(options.model)
    from flava_ds.evaluation.opening import is_huggingface

    if is_huggingface(options.model):
        raise UserError(
            f"{options.model}: is a Hugging Face model, which has no data of its own; name a task. {tasks}"
        )
    from flava_ds import config as configuration
    from flava_ds.demo.evaluation.evaluator import find_data, measure_run, write_result

    if find_data(configuration.load(options.model / "config.json")) is None:
        raise UserError(f"{options.model}: did not train on the demo's data, so name a task. {tasks}")
    tell_user(f"the demo's held-out data; {tasks}")
    found = measure_run(options.model)
    try:
        keep(partial(write_result, options.model, found))
    finally:  # a full disk ends the command, but loses no numbers
        print(json.dumps(found, indent=2))
    return 0
