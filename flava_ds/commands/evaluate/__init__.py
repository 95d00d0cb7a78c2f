"""`flava-ds evaluate`: tasks or a suite on a run, checkpoint or Hugging Face folder, or the demo's own.

A module for each of the three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flava_ds.commands.evaluate.demo import run_demo_evaluation
from flava_ds.commands.evaluate.suite import run_suite
from flava_ds.commands.evaluate.tasks import run_tasks
from flava_ds.commands.local_path import local_path, path_or_url
from flava_ds.commands.runs import require_model
from flava_ds.errors import UserError


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    where = "runs/NAME, runs/NAME/checkpoints/step_N (or a URL of it), or a model's folder of Hugging Face"
    command.add_argument("model", metavar="RUN", type=path_or_url, nargs="?", help=where)
    command.add_argument(
        "--task",
        metavar="NAME[,NAME]",
        help="tasks; on your own data zero_shot, retrieval, linear_probe, neighbours; or FILE.py with "
        "TASKS of yours; --list shows all",
    )
    command.add_argument(
        "--data",
        metavar="ROOT",
        type=local_path,
        help="parent of the data sets' folders, or one data set's folder",
    )
    command.add_argument(
        "--suite",
        choices=["vision", "text", "pairs", "all"],
        help="run every task of a kind whose data is under --data, and write a page of the paper's tables",
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        type=local_path,
        help="where a suite's files and features are written (default: RUN/suites/NAME/step_N, where NAME "
        "has the --splits and --limit, too)",
    )
    command.add_argument(
        "--features",
        metavar="DIR",
        type=local_path,
        help="keep images' features there, and use those of the same weights again (a suite does, in --out)",
    )
    command.add_argument(
        "--splits", metavar="NAME", help="split data sets as vissl, clip or vtab does, where they offer it"
    )
    command.add_argument("--split", help="split to report on (default: the test split)")
    command.add_argument(
        "--limit", type=int, metavar="N", help="use at most N samples per split, of each class its share"
    )
    _add_model(command)
    _add_fine_tuning(command)
    command.add_argument(
        "--list",
        action="store_true",
        help="list the tasks, their requirements and where to get their data",
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--average",
        metavar="STATE",
        help="the run's running average of a training state in place of the weights it follows: ema, "
        "dino.teacher",
    )
    command.add_argument(
        "--regions",
        metavar="DIR|FILE",
        type=local_path,
        help="for a model that reads regions: those that a detector found in the data's images before "
        "(shards with KEY.regions.safetensors, or published tables, *.tsv), or a detector's weights",
    )
    command.add_argument("--device", help="device, e.g. cpu or cuda:1 (default: the GPU if there is one)")
    command.add_argument(
        "--precision", choices=["fp32", "bf16"], help="default: the run's; fp32 for other folders"
    )


def _add_fine_tuning(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep",
        metavar="DIR",
        type=local_path,
        help="folder to resume interrupted fine-tuning from (default: in the run's folder; else none)",
    )
    command.add_argument(
        "--keep-weights",
        action="store_true",
        help="also keep there the weights that a fine-tuning reports, for Model.fine_tuned",
    )
    command.add_argument(
        "--own-head",
        action="store_true",
        help="train nothing, and use the head that a folder of Hugging Face was fine-tuned with",
    )
    command.add_argument(
        "--head-classes",
        metavar="NAMES",
        help="what that head's outputs are, in order, as the data set calls them: NAME,NAME or FILE.json",
    )


def run(options: argparse.Namespace) -> int:
    """Prints JSON to stdout and a table to stderr. Stores the results in the folder of a run.

    Raises: UserError.
    """
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.table import task_list
    from flava_ds.storage.atomic import check_writable

    names = [name for name in (options.task or "").split(",") if name]
    if options.list:
        registry.find(names)
        print(task_list(registry.tasks()))
        return 0
    if options.model is None:
        raise UserError(
            "RUN is missing; give a run's folder, a checkpoint or its URL, or a folder of Hugging Face"
        )
    if not (names or options.suite):
        return run_demo_evaluation(options)
    if names and options.suite:
        raise UserError("--task and --suite are two things; give one of them")
    if options.data is None:
        given = "--task" if names else "--suite"
        raise UserError(f"{given} needs --data ROOT, the folder with the data sets; --list names them")
    if options.own_head and options.suite:
        raise UserError("--own-head is for --task: a head was fine-tuned for one task")
    if options.head_classes is not None and not options.own_head:
        raise UserError("--head-classes says what the outputs of --own-head are; give that too")
    if options.own_head and options.keep_weights:
        raise UserError("--own-head trains nothing, so --keep-weights has nothing to keep; give one of them")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: use at least 1")
    for option in ("out", "features", "keep"):
        if (folder := getattr(options, option)) is not None:
            check_writable(folder, f"--{option}")
    if isinstance(options.model, Path):
        require_model(options.model)
    return run_suite(options) if options.suite else run_tasks(options, names)
