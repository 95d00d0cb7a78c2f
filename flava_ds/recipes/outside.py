"""Recipes and variants in the user's own code: `path/to/recipe.py:function` or `package.module:function`.

Code is imported only if the command line names it, never because a config.json does: a configuration is data.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Collection, Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from flava_ds.config import Config
from flava_ds.config.evaluation import files_of
from flava_ds.config.places import check_sections
from flava_ds.errors import ConfigError, did_you_mean, told_at
from flava_ds.recipes.stages import Stages


def is_outside(recipe: str) -> bool:
    """Returns True if a recipe's name is the location of a function, or a Python file without one."""
    return recipe.endswith(".py") or (":" in recipe and not recipe.endswith(".json") and "://" not in recipe)


def absolute(place: str) -> str:
    """Makes the path of a recipe or plugin independent of the working directory; module names stay."""
    found = re.fullmatch(r"(.*\.py)(:\w*)?", place)
    return f"{Path(found[1]).expanduser().resolve()}{found[2] or ''}" if found else place


def call(recipe: str) -> Config | Stages:
    """Imports the code that `recipe` names and returns its function's result.

    Raises: ConfigError in one line for code that does not exist or does not import, with the exception and
    its line, and for a function that is missing, takes arguments, fails or returns something else.
    """
    place, _, name = recipe.rpartition(":") if ":" in recipe else (recipe, "", "")
    if not name:
        raise ConfigError(_without_function(recipe.removesuffix(":")))
    module = import_code(place)
    function = getattr(module, name, None)
    if not callable(function):
        known = _functions_in(Path(place)) or [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        found = did_you_mean(name, known) or (f"; it has {', '.join(known)}" if known else "")
        raise ConfigError(f"{place} has no function '{name}'{found}")
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # written in C, without a signature
        parameters = []
    asked = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if asked:
        raise ConfigError(f"{recipe} requires {', '.join(asked)}; a recipe takes no arguments")
    try:
        config = function()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{recipe} failed: {told_at(error)}") from error
    if not isinstance(config, Config | Stages):
        raise ConfigError(
            f"{recipe} returned {type(config).__name__}; a recipe returns a flava_ds.config.Config"
        )
    check_sections(config)  # before options look for their fields
    return config


def check_module(recipe: str) -> None:
    """Raises ConfigError if `recipe` is only the dotted name of a module, without importing it."""
    if "." in recipe and _file_of(recipe) is not None:
        raise ConfigError(_without_function(recipe))


def _without_function(place: str) -> str:
    """Asks for the function of a file or module, and lists those that it defines."""
    file = Path(place) if place.endswith(".py") else _file_of(place)
    names = ", ".join(_functions_in(file)) if file else ""
    return f"{place}: name its function too, as {place}:FUNCTION{names and f'; it has {names}'}"


def _file_of(module: str) -> Path | None:
    """Finds the file of a module by its dotted name without running any code; None if there is none."""
    places: list[str] = [*sys.path, str(Path.cwd())]
    *packages, last = module.split(".")
    for package in packages:
        found = PathFinder.find_spec(package, places)
        places = [*(found.submodule_search_locations or ())] if found else []
    found = PathFinder.find_spec(last, places)
    return Path(found.origin) if found and found.origin else None


def take_plugins(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Splits the values of --plugin from the other words of a command line.

    Raises: ConfigError if a --plugin has no value.
    """
    plugins, others, given = [], [], iter(words)
    for word in given:
        if word == "--plugin" or word.startswith("--plugin="):
            place = word.partition("=")[2] or next(given, "")
            if not place or place.startswith("-"):
                raise ConfigError("--plugin needs a file or module after it, e.g. --plugin recipe.py")
            plugins.append(place)
        else:
            others.append(word)
    return plugins, others


def import_plugins(places: Iterable[str]) -> None:
    """Imports the files and modules named by --plugin, so that they define their variants."""
    for place in places:
        import_code(place)


def check_task_files(
    config: Config, overrides: Collection[str], plugins: Iterable[str], *, is_data: bool
) -> None:
    """Refuses Python files among `evaluation.tasks` that only a file of data names: it may be another's.

    `is_data` says whether the recipe is such a file and not code.

    Raises: ConfigError.
    """
    said = any(word.partition("=")[0] == "--evaluation.tasks" for word in overrides)
    if not is_data or said or not config.evaluation.every_steps:
        return
    known = {absolute(place) for place in plugins}
    for file in files_of(config.evaluation.tasks):
        if absolute(file) not in known:
            way = f"add --plugin {shlex.quote(file)}"
            if not Path(absolute(file)).is_file():
                way = "name all tasks after --evaluation.tasks, that file by its place seen from this folder"
            raise ConfigError(
                f"evaluation.tasks names the code {file}, which a file cannot; if it is yours, {way}"
            )


def import_code(place: str) -> ModuleType:
    """Imports a module by its dotted name, or a file as a module of its folder.

    So a class of the file has the same module name in every process that unpickles it.

    Raises: ConfigError if there is no such code, if it fails (with the exception and its line), or if another
    module has the file's name.
    """
    path = Path(place).expanduser()
    if not place.endswith(".py"):
        return _import_module(place, Path.cwd(), what=place)
    if not path.is_file():
        raise ConfigError(
            f"{place}: no such file; give a recipe as FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"
        )
    path, name = path.resolve(), path.stem
    if name == "__init__":
        raise ConfigError(f"{place} is a package, not a file; {_by_its_module(path)}")
    if not name.isidentifier():
        raise ConfigError(
            f"{place}: '{name}' is not a module name; rename the file, using letters, digits and _"
        )
    taken = sys.modules.get(name) or _spec_of(name)
    origin = getattr(taken, "__file__", None) or getattr(taken, "origin", None)
    if taken is not None and (origin is None or Path(origin).resolve() != path):
        raise ConfigError(
            f"{place}: another module is named {name} ({origin or 'built in'}); rename the file"
        )
    return _import_module(name, path.parent, what=place)


def _spec_of(name: str) -> object:
    """Returns where a top-level module would come from, or None."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _import_module(name: str, folder: Path, what: str) -> ModuleType:
    """Imports a module, possibly from `folder`."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"no module named '{name}', neither installed, nor on PYTHONPATH, nor in {folder}"
            ) from error
        raise ConfigError(f"{what} does not import: {told_at(error)}") from error
    except (Exception, SystemExit) as error:
        of_package = what.endswith(".py") and (folder / "__init__.py").is_file()
        relative = of_package and isinstance(error, ImportError)
        hint = f"; {_by_its_module(folder / f'{name}.py')}" if relative else ""
        raise ConfigError(f"{what} does not import: {told_at(error)}{hint}") from error


def _by_its_module(path: Path) -> str:
    """Says how to give a file of a package instead of by its path."""
    parts = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts, folder = [folder.name, *parts], folder.parent
    return f"give it by its module, {'.'.join(parts)}, with {folder} on PYTHONPATH"


def _functions_in(path: Path) -> list[str]:
    """Lists the public functions that a file defines, without importing it; empty if it cannot be read."""
    try:
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return []
    return [
        node.name for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
