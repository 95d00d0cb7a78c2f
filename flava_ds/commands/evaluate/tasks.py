"""`evaluate --task`: the tasks that are named, told one by one."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from flava_ds.commands.evaluate.common import keep, model_facts, open_asked, tell_user, teller, workplace
from flava_ds.errors import UserError
from flava_ds.plain_text import without_secrets

if TYPE_CHECKING:
    import torch

    from flava_ds.evaluation.opening import Opened
    from flava_ds.evaluation.runner import FoundData, TaskResult


def run_tasks(options: argparse.Namespace, names: list[str]) -> int:
    """Runs tasks. Finds their data before loading the model, and checks their needs before encoding.

    What a task found is told and, for a run, written when it finishes, so a later one that fails loses
    nothing. Ranks that a launcher started share the work; the first one prints and writes.

    Raises: UserError for the tasks that failed, after the others. One that fails on one of several ranks
    fails on all.
    """
    from flava_ds.evaluation.feature_cache import FeatureCache
    from flava_ds.evaluation.runner import check_needs, evaluate
    from flava_ds.evaluation.shares import launched

    if options.out is not None:
        raise UserError("--out is for --suite; --features keeps features, and the JSON goes to stdout")
    with launched() as (share, device):
        tell = teller(share)
        tasks, data, opened = share.together(partial(_find, options, names, device))
        cache = FeatureCache(options.features, opened.weights, tell) if options.features else None
        model = opened.frozen(cache, share).at(workplace(options, opened, tell))
        check_needs(tasks, model)
        found: dict[str, Any] = {}
        failed: dict[str, UserError] = {}
        for task in tasks:
            try:
                results = share.together(partial(evaluate, [task], model, data, tell))
            except UserError as error:
                if len(tasks) == 1:
                    raise
                failed[task.name] = error
                tell(f"{task.name}: {error}")
                continue
            found |= share.from_main(partial(report, options, opened, results))
        if share.is_main and found:
            print(json.dumps(found, indent=2))
        raise_failed(failed, len(tasks))
    return 0


def _find(
    options: argparse.Namespace, names: list[str], device: torch.device | None
) -> tuple[list[Any], dict[str, FoundData], Opened]:
    """Returns the tasks, their data and the model. Raises: UserError."""
    from flava_ds.evaluation import registry
    from flava_ds.evaluation.protocols import Trained
    from flava_ds.evaluation.results import read_results
    from flava_ds.evaluation.runner import find_all
    from flava_ds.evaluation.suite import with_splits
    from flava_ds.evaluation.tuning.own_head import read_classes, with_own_head

    tasks = with_splits(registry.find(names, options.data), options.splits)
    if options.keep_weights and not any(isinstance(task, Trained) for task in tasks):
        raise UserError(f"--keep-weights: {' and '.join(names)} train no weights; leave it out")
    if options.own_head:
        tasks = with_own_head(tasks, read_classes(options.head_classes))
    data = find_all(tasks, options.data, options.split, options.limit)
    opened = open_asked(options, device)
    if opened.run_path is not None:
        read_results(opened.run_path)  # a damaged file is told before the work
    return tasks, data, opened


def raise_failed(failed: dict[str, UserError], tasks: int) -> None:
    """Raises UserError that counts the tasks that failed and tells the first one's reason."""
    if failed:
        name, first = next(iter(failed.items()))
        how_many = f"{len(failed)} of {tasks} tasks failed, the others' results are above"
        raise UserError(
            f"{how_many if len(failed) < tasks else f'all {tasks} tasks failed'}; {name}: {first}"
        )


def report(options: argparse.Namespace, opened: Opened, results: dict[str, TaskResult]) -> dict[str, Any]:
    """Prints results as a table, stores them in the folder of a run, and returns them as plain JSON types."""
    from flava_ds.evaluation.results import write_results
    from flava_ds.evaluation.suite import conditions
    from flava_ds.evaluation.table import result_table

    family = opened.described.family
    facts = {"model": without_secrets(str(options.model)), **model_facts(opened), **conditions()}
    found = {task: facts | result.to_json(task, family) for task, result in results.items()}
    tell_user("\n" + result_table(results, family))
    if opened.run_path is not None:
        keep(partial(write_results, opened.run_path, found))
    return found
