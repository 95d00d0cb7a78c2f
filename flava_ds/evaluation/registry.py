"""Tasks by name: those of flava_ds/evaluation/tasks/, and those that a user's file or a test adds."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from flava_ds.config.evaluation import OWN_FILE
from flava_ds.data.user_pipeline import run_file
from flava_ds.errors import DataError, UserError, first_of
from flava_ds.evaluation import methods
from flava_ds.evaluation import tasks as package
from flava_ds.evaluation.protocols import Evaluator

_TASKS: dict[str, Evaluator] = {}
OTHERS = "others"
GROUPS = (
    *("vision probes", "fine-tuned vision", "zero-shot", "retrieval", "language", "vision-language"),
    *("validation", OTHERS),
)
"""In the order in which they are listed."""
SHOWN, MOST_NAMED = 2, 10
"""Names of a group where there is no room for all, and the most tasks that are all named."""


def tasks() -> dict[str, Evaluator]:
    """Returns every known task, by name."""
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for task in module.TASKS:
            first = _TASKS.setdefault(task.name, task)
            assert first is task, f"{module.__name__}: '{task.name}' exists twice"
    return dict(_TASKS)


def register(task: Evaluator) -> Evaluator:
    """Adds a task.

    Raises: UserError if its name is taken or is not a plain identifier.
    """
    if not task.name.replace("_", "").isalnum():
        raise UserError(f"task '{task.name}': a task's name consists of letters, digits and underscores")
    if tasks().get(task.name, task) is not task:
        raise UserError(f"task '{task.name}' already exists; give the new one another name")
    _TASKS[task.name] = task
    return task


def unregister(name: str) -> None:
    """Removes a task."""
    _TASKS.pop(name, None)


def find(names: Iterable[str], root: Path | None = None) -> list[Evaluator]:
    """Returns tasks by name; `FILE.py` means all of a file's TASKS, `FILE.py:NAME` one of them, and a plain
    method such as `zero_shot` the one on the user's own data in `root`.

    Raises: UserError listing the known names.
    """
    found: list[Evaluator] = []
    for name in names:
        if (own := OWN_FILE.fullmatch(name)) is not None:
            added = {entry.name: entry for entry in _load(Path(own["file"])).TASKS}
            for entry in added.values():
                register(entry)
            found += list(added.values()) if not own["task"] else [_pick(own["task"], added)]
        elif root is not None and name in methods.METHODS:
            found.append(methods.task_on(name, root, tasks()))
        else:
            found.append(_pick(name, tasks(), also=methods.METHODS))
    return list(dict.fromkeys(found))


def grouped(known: Mapping[str, Evaluator]) -> dict[str, list[str]]:
    """Returns the names of tasks by group, sorted; a method that names no group is among the others."""
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, task in sorted(known.items()):
        found.setdefault(getattr(task, "group", OTHERS), []).append(name)
    return {group: names for group, names in found.items() if names}


def overview(known: Mapping[str, Evaluator]) -> str:
    """Names the groups of tasks in one line, each with its first ones."""
    parts = [f"{group}: {first_of(names, SHOWN)}" for group, names in grouped(known).items()]
    return f"{'; '.join(parts)}; `flava-ds evaluate --list` describes all"


def nearest(name: str, known: Mapping[str, Evaluator], also: Iterable[str] = ()) -> list[str]:
    """Returns the task that a misspelled name means, or all on the data set that it means, if any."""
    names = [*also, *known]
    if close := get_close_matches(name, names, n=1, cutoff=0.85):
        return close
    data = get_close_matches(name, {task.data.name for task in known.values()}, n=1)
    return [own for own, task in sorted(known.items()) if task.data.name in data] or get_close_matches(
        name, names, n=1
    )


def _pick(name: str, known: dict[str, Evaluator], also: Collection[str] = ()) -> Evaluator:
    if name not in known:
        close = " or ".join(f"'{own}'" for own in nearest(name, known, also))
        hint = f" (did you mean {close}?)" if close else ""
        hint = " (names of tasks are separated by spaces here)" if "," in name else hint
        hint = hint or (" (tasks of your own are FILE.py or FILE.py:NAME)" if set(name) & set("./:") else "")
        there = overview(known) if len(known) > MOST_NAMED else ", ".join(known)
        plain = f"; on data of your own: {', '.join(also)}" if also else ""
        raise UserError(f"no task '{name}'{hint}; there are {there}{plain}")
    return known[name]


_LOADED: dict[Path, ModuleType] = {}


def _load(file: Path) -> ModuleType:
    """Runs a user's file once; one that has been imported as a recipe or plugin is taken as it is.

    Raises: DataError for a file that is missing or fails, with the exception and its line, or whose TASKS are
    none.
    """
    path = file.expanduser().resolve()
    if path not in _LOADED:
        if not path.is_file():
            raise DataError(
                f"{file}: no such file; --task takes a task's name, or a Python file with a tuple TASKS"
            )
        module = _imported(path) or _run(file, path)
        if not hasattr(module, "TASKS"):
            raise DataError(f"{file}: defines no TASKS, the tuple of its evaluators")
        _check_tasks(file, module.TASKS)
        _LOADED[path] = module
    return _LOADED[path]


def _imported(path: Path) -> ModuleType | None:
    """Returns the module that a file already is. Run again, it would define its classes twice."""
    for module in list(sys.modules.values()):
        place = Path(getattr(module, "__file__", None) or "")
        if place.name == path.name and place.resolve() == path:
            return module
    return None


def _run(file: Path, path: Path) -> ModuleType:
    try:
        return run_file(path, f"flava_ds_tasks_{len(_LOADED)}_{path.stem}")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        line = lines[-1] if lines else getattr(error, "lineno", None) or 1
        raise DataError(f"{file}:{line}: {type(error).__name__}: {getattr(error, 'msg', error)}") from error


def _check_tasks(file: Path, found: object) -> None:
    """Raises DataError if TASKS is no tuple of what flava_ds/evaluation/protocols.py calls an evaluator."""
    if not isinstance(found, tuple | list):
        raise DataError(f"{file}: TASKS is {type(found).__name__}; it is a tuple of evaluators")
    for number, task in enumerate(found):
        if isinstance(task, type):
            raise DataError(f"{file}: TASKS[{number}] is the class {task.__name__}; give an instance of it")
        lacking = [name for name in ("name", "about", "needs", "data", "run") if not hasattr(task, name)]
        if lacking:
            raise DataError(f"{file}: TASKS[{number}] has no {', '.join(lacking)}; every evaluator has one")
        parts = ("name", "folder", "licence", "origin", "layout", "splits", "is_here", "read")
        if lacking := [name for name in parts if not hasattr(task.data, name)]:
            raise DataError(
                f"{file}: TASKS[{number}].data ({type(task.data).__name__}) has no {', '.join(lacking)}; "
                "every data set has one"
            )
        if not isinstance(task.needs, tuple) or not all(isinstance(own, type) for own in task.needs):
            raise DataError(
                f"{file}: TASKS[{number}].needs is {task.needs!r:.60}; it is a tuple of capabilities, "
                "such as (flava_ds.evaluation.protocols.ImageFeatures,)"
            )
