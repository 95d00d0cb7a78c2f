"""`flava-ds evaluate`: runs tasks on a run, checkpoint or Hugging Face folder, or the demo's evaluation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from flava_ds.commands.runs import require_model
from flava_ds.errors import UserError


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    where = "runs/NAME, runs/NAME/checkpoints/step_N, or a FLAVA folder of Hugging Face"
    command.add_argument("model", metavar="RUN", type=Path, nargs="?", help=where)
    command.add_argument(
        "--task", metavar="NAME[,NAME]", help="tasks, or FILE.py that defines TASKS; --list shows all"
    )
    command.add_argument(
        "--data", metavar="ROOT", type=Path, help="parent of the data sets' folders, or one data set's folder"
    )
    command.add_argument("--split", help="split to report on (default: the test split)")
    command.add_argument(
        "--limit", type=int, metavar="N", help="use at most N samples per split, evenly spaced"
    )
    command.add_argument("--device", help="device, e.g. cpu or cuda:1 (default: the GPU if there is one)")
    command.add_argument(
        "--precision", choices=["fp32", "bf16"], help="default: the run's; fp32 for other folders"
    )
    command.add_argument(
        "--list",
        action="store_true",
        help="list the tasks, their requirements and where to get their data",
    )


def run(options: argparse.Namespace) -> int:
    """Prints JSON to stdout and a table to stderr. Stores the results in the folder of a run.

    Raises: UserError.
    """
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.table import task_list

    names = [name for name in (options.task or "").split(",") if name]
    if options.list:
        registry.find(names)
        print(task_list(registry.tasks()))
        return 0
    if options.model is None:
        raise UserError(
            "RUN is missing; give a run's folder, a checkpoint, or a FLAVA folder of Hugging Face"
        )
    if not names:
        return run_demo_evaluation(options)
    if options.data is None:
        raise UserError("--task needs --data ROOT, the folder with the data sets; --list names them")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: use at least 1")
    require_model(options.model)
    return run_tasks(options, names)


def run_tasks(options: argparse.Namespace, names: list[str]) -> int:
    """Runs tasks. Finds their data before loading the model, and checks their needs before encoding."""
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.opening import open_model
    from flava_ds.evaluation.runner import evaluate, find_all, write_results
    from flava_ds.evaluation.table import result_table

    tasks = registry.find(names)
    data = find_all(tasks, options.data, options.split, options.limit)
    opened = open_model(options.model, device=options.device, precision=options.precision)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    results = evaluate(tasks, opened.frozen(), data, tell=tell)
    precision = str(next(opened.module.parameters()).dtype).removeprefix("torch.")
    facts = {"model": str(options.model), "step": opened.described.step, "precision": precision}
    found = {task: facts | result.to_json(task) for task, result in results.items()}
    if opened.run_path is not None:
        write_results(opened.run_path, found)
    print("\n" + result_table(results), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))
    return 0


def run_demo_evaluation(options: argparse.Namespace) -> int:
    """Evaluates a demo run on the demo's held-out data; for any other run, lists the available tasks.

    Raises: UserError.
    """
    options_of_tasks = ("data", "split", "limit", "device", "precision")
    given = [name for name in options_of_tasks if getattr(options, name) is not None]
    if given:
        raise UserError(f"--{given[0]} requires --task; --list shows the tasks")
    from flava_ds.evaluation import registry

    tasks = f"tasks for --task: {', '.join(sorted(registry.tasks()))}; --list describes them"
    require_model(options.model)
    from flava_ds.evaluation.opening import is_huggingface

    if is_huggingface(options.model):
        raise UserError(
            f"{options.model}: is a Hugging Face model, which has no data of its own; name a task. {tasks}"
        )
    from flava_ds import config as configuration
    from flava_ds.demo.evaluation.evaluator import evaluate_run, find_data

    if find_data(configuration.load(options.model / "config.json")) is None:
        raise UserError(f"{options.model}: did not train on the demo's data, so name a task. {tasks}")
    print(f"the demo's held-out data; {tasks}", file=sys.stderr, flush=True)
    print(json.dumps(evaluate_run(options.model), indent=2))
    return 0
