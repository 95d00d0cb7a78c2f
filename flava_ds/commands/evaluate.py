"""`flava-ds evaluate`: runs tasks on a run, checkpoint or Hugging Face folder, or the demo's evaluation."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds.commands.local_path import local_path
from flava_ds.commands.runs import require_model
from flava_ds.errors import UserError

if TYPE_CHECKING:
    from flava_ds.evaluation.opening import Opened
    from flava_ds.evaluation.runner import TaskResult


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    where = "runs/NAME, runs/NAME/checkpoints/step_N, or a model's folder of Hugging Face"
    command.add_argument("model", metavar="RUN", type=local_path, nargs="?", help=where)
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
        "--regions",
        metavar="DIR|FILE",
        type=local_path,
        help="for a model that reads regions: those that a detector found in the data's images before "
        "(shards with KEY.regions.safetensors, or published tables, *.tsv), or a detector's weights",
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
        help="where a suite's files and features are written (default: RUN/suites/NAME)",
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
        "--limit", type=int, metavar="N", help="use at most N samples per split, evenly spaced"
    )
    command.add_argument("--device", help="device, e.g. cpu or cuda:1 (default: the GPU if there is one)")
    command.add_argument(
        "--precision", choices=["fp32", "bf16"], help="default: the run's; fp32 for other folders"
    )
    _add_fine_tuning(command)
    command.add_argument(
        "--list",
        action="store_true",
        help="list the tasks, their requirements and where to get their data",
    )


def _add_fine_tuning(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep",
        metavar="DIR",
        type=local_path,
        help="folder to resume interrupted fine-tuning from (default: in the run's folder; else none)",
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
            "RUN is missing; give a run's folder, a checkpoint, or a model's folder of Hugging Face"
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
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: use at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.suite:
        raise UserError("--suite runs in a single process; start it without a launcher, or use --task")
    for option in ("out", "features", "keep"):
        if (folder := getattr(options, option)) is not None:
            check_writable(folder, f"--{option}")
    require_model(options.model)
    return run_suite(options) if options.suite else run_tasks(options, names)


def run_suite(options: argparse.Namespace) -> int:
    """Runs a suite, and prints its table and where its files are.

    Raises: UserError.
    """
    from flava_ds.evaluation import suite
    from flava_ds.evaluation.feature_cache import FeatureCache
    from flava_ds.evaluation.frozen_model import Workplace
    from flava_ds.evaluation.opening import open_model
    from flava_ds.report.suite_page import not_run, tables_as_markdown, write_pages

    if options.split is not None:
        raise UserError("--split is for --task; a suite reports on each data set's test split")
    if not options.data.is_dir():
        raise UserError(f"--data {options.data}: no such folder; --list says what it holds")
    tasks = suite.with_splits(suite.members(options.suite), options.splits)
    opened = open_model(
        options.model, device=options.device, precision=options.precision, regions=options.regions
    )
    if options.out is None and opened.run_path is None:
        raise UserError(f"{options.model}: is no run, so a suite needs --out DIR for what it writes")
    out = options.out or opened.run_path / "suites" / options.suite
    facts = {
        **{"model": opened.described.name, "path": str(options.model), **_facts(opened)},
        **{"data": str(options.data), "limit": options.limit, "splits": options.splits},
    }
    cache = FeatureCache(options.features or out / "features", opened.weights, _tell)
    running = suite.Suite(options.suite, tasks, options.data, out, options.limit, facts, _tell)
    workplace = Workplace(_states(options, opened) or out / "fine_tuning", _tell)
    report = running.run(lambda: opened.frozen(cache).at(workplace))
    if not any("scores" in result for result in report["tasks"].values()):
        raise UserError(
            f"{options.data}: no data of suite {options.suite} could be used; {out / suite.FILE} says why, "
            "and --list what is expected"
        )
    _tell(f"\n{tables_as_markdown(report)}")
    _tell(f"{len(not_run(report))} tasks were not run; the page says why for each")
    for path in (out / suite.FILE, *write_pages(report, out)):
        print(path)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _states(options: argparse.Namespace, opened: Opened) -> Path | None:
    """Returns where fine-tuning saves its state: the folder that the user names, or one in a run's folder."""
    if options.keep is not None or opened.run_path is None:
        return options.keep
    return opened.run_path / "fine_tuning" / f"step_{opened.described.step:08d}"


def _facts(opened: Opened) -> dict[str, Any]:
    """Returns which model this is, and how it computes."""
    first, described = next(opened.module.parameters()), opened.described
    return {
        **{"family": described.family, "step": described.step, "weights": opened.weights},
        **{"precision": str(first.dtype).removeprefix("torch."), "device": str(first.device)},
    }


def run_tasks(options: argparse.Namespace, names: list[str]) -> int:
    """Runs tasks. Finds their data before loading the model, and checks their needs before encoding.

    What a task found is told and, for a run, written when it finishes, so a later one that fails loses
    nothing. Ranks that a launcher started share the work; the first one prints and writes.

    Raises: UserError for the tasks that failed, after the others; with several ranks at once, since the
    others wait for this one.
    """
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.feature_cache import FeatureCache
    from flava_ds.evaluation.frozen_model import Workplace
    from flava_ds.evaluation.opening import freeze, open_model
    from flava_ds.evaluation.runner import check_needs, evaluate, find_all, read_results
    from flava_ds.evaluation.shares import launched
    from flava_ds.evaluation.suite import with_splits
    from flava_ds.evaluation.tuning.own_head import read_classes, with_own_head

    if options.out is not None:
        raise UserError("--out is for --suite; --features keeps features, and the JSON goes to stdout")
    with launched() as (share, device):

        def tell(line: str) -> None:
            if share.is_main:
                _tell(line)

        tasks = with_splits(registry.find(names, options.data), options.splits)
        if options.own_head:
            tasks = with_own_head(tasks, read_classes(options.head_classes))
        data = find_all(tasks, options.data, options.split, options.limit)
        opened = open_model(
            options.model,
            device=options.device or device,
            precision=options.precision,
            regions=options.regions,
        )
        if opened.run_path is not None:
            read_results(opened.run_path)  # a damaged file is told before the work
        cache = FeatureCache(options.features, opened.weights, tell) if options.features else None
        model = freeze(opened.config, opened.module, opened.described, share, cache, opened.head)
        model = model.at(Workplace(_states(options, opened), tell))
        check_needs(tasks, model)
        found: dict[str, Any] = {}
        failed: dict[str, UserError] = {}
        for task in tasks:
            try:
                results = evaluate([task], model, data, tell)
            except UserError as error:
                if share.parts > 1 or len(tasks) == 1:
                    raise
                failed[task.name] = error
                tell(f"{task.name}: {error}")
                continue
            if share.is_main:
                found |= report(options, opened, results)
        if share.is_main and found:
            print(json.dumps(found, indent=2))
        raise_failed(failed, len(tasks))
    return 0


def raise_failed(failed: dict[str, UserError], tasks: int) -> None:
    """Raises UserError that counts the tasks that failed and tells the first one's reason."""
    if failed:
        name, first = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {tasks} tasks failed, the others' results are above; {name}: {first}"
        )


def report(options: argparse.Namespace, opened: Opened, results: dict[str, TaskResult]) -> dict[str, Any]:
    """Prints results as a table, stores them in the folder of a run, and returns them as plain JSON types."""
    from flava_ds.evaluation.runner import write_results
    from flava_ds.evaluation.suite import conditions
    from flava_ds.evaluation.table import result_table

    family = opened.described.family
    facts = {"model": str(options.model), **_facts(opened), **conditions()}
    found = {task: facts | result.to_json(task, family) for task, result in results.items()}
    _tell("\n" + result_table(results, family))
    if opened.run_path is not None:
        write_results(opened.run_path, found)
    return found


def run_demo_evaluation(options: argparse.Namespace) -> int:
    """Evaluates a demo run on the demo's held-out data; for any other run, lists the available tasks.

    Raises: UserError.
    """
    given = [
        name
        for name in (
            "data",
            "regions",
            "split",
            "splits",
            "limit",
            "device",
            "precision",
            "features",
            "out",
            "keep",
            "own_head",
            "head_classes",
        )
        if getattr(options, name) not in (None, False)
    ]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} requires --task; --list shows the tasks")
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.methods import METHODS

    own = f"on data of your own: {', '.join(METHODS)}"
    tasks = f"tasks for --task: {own}; {registry.overview(registry.tasks())}"
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
