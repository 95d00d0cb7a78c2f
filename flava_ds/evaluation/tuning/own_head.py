"""Tasks that use the head which a model was fine-tuned with elsewhere, and train nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import UserError

UNNAMED = re.compile(r"LABEL_\d+")
"""How transformers calls a class that has no name."""
CLASSIFYING = ("ForSequenceClassification", "ForQuestionAnswering")
"""How those of transformers' classes end whose head tells classes."""


def with_own_head(tasks: Sequence[Any], classes: Sequence[str] = ()) -> list[Any]:
    """Returns the tasks as they run with a model's own head, whose classes are called `classes`, or as its
    files call them.

    Raises: UserError for a task that has no head.
    """
    for task in tasks:
        if not hasattr(task, "own_head"):
            raise UserError(f"--own-head: task {task.name} has no head; leave it out, or --own-head")
    return [dataclasses.replace(task, own_head=True, head_classes=tuple(classes)) for task in tasks]


def read_classes(given: str | None) -> tuple[str, ...]:
    """Reads the names of a head's classes: names and commas, or a JSON file with a list.

    Raises: UserError.
    """
    if given is None:
        return ()
    if not given.endswith(".json"):
        return tuple(name.strip() for name in given.split(","))
    try:
        found = loads(read_small(Path(given)))
    except (OSError, ValueError) as error:
        raise UserError(f"--head-classes {given}: cannot be read ({error})") from error
    if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise UserError(f"--head-classes {given}: holds no list of names, in the order of the head's outputs")
    return tuple(found)


def named(own: Sequence[str], given: Sequence[str], task: str) -> tuple[str, ...]:
    """Returns what a head's classes are called: `given`, or their `own` names.

    Raises: UserError if they have no names, or another number of them is given.
    """
    if given and len(given) != len(own):
        raise UserError(f"--head-classes names {len(given)} classes, but the model's head has {len(own)}")
    if not given and len(own) > 1 and all(UNNAMED.fullmatch(name) for name in own):
        raise UserError(
            f"task {task}: the {len(own)} classes of the model's head have no names (id2label of its "
            "config.json); give them in order with --head-classes NAME,NAME or FILE.json"
        )
    return tuple(given or own)


def check_made_for(architecture: str, task: str) -> None:
    """Raises UserError for a head that does not tell the class of one text or pair, e.g. one that scores each
    of several choices.
    """
    if architecture and not architecture.endswith(CLASSIFYING):
        raise UserError(
            f"task {task}: the model's head is that of a {architecture}, but --own-head takes those of "
            f"{' and '.join(f'...{name}' for name in CLASSIFYING)}; leave it out, and a head is trained"
        )


def columns(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Returns the output of a head for each class of a data set, by name without regard to case: [z].

    Raises: UserError naming a class that the head lacks, or has twice.
    """
    folded = [name.casefold() for name in names]
    places = {name: place for place, name in enumerate(folded)}
    if twice := [name for name in wanted if folded.count(name.casefold()) > 1]:
        raise UserError(
            f"the model's head has two outputs of class '{twice[0]}' ({', '.join(names[:10])}); say with "
            "--head-classes which one it is, and call the other one something else"
        )
    if lacking := [name for name in wanted if name.casefold() not in places]:
        raise UserError(
            f"the model's head has no class '{lacking[0]}'; it has {', '.join(names[:10])}, the data set "
            f"{', '.join(wanted[:10])}; say with --head-classes which output is which"
        )
    return np.array([places[name.casefold()] for name in wanted])
