"""Recipes of one's own: from a file or a module, from any folder; saved configurations that name
their code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flava_ds import cli, train
from flava_ds.commands import train as train_command
from flava_ds.config import OptimizerConfig, to_dict
from flava_ds.errors import ConfigError
from flava_ds.ranks import launch
from flava_ds.recipes import load_recipe, outside

ROOT = Path(__file__).parents[2]
RECIPE = '''"""A recipe with an optimizer of its own."""

from dataclasses import dataclass, replace

from flava_ds.optimizers.lion import LionConfig
from flava_ds.recipes.flava_debug import flava_debug
from neighbour import NAME

LATER = 1 / 2


@dataclass(frozen=True, kw_only=True)
class TigerConfig(LionConfig, type="tiger"):
    """Lion with stripes."""

    stripes: int = 3


def mine():
    return replace(flava_debug(), name=NAME, optimizer=TigerConfig(lr=2e-4))


def with_size(size, more=1):
    return mine()


def with_default(size=1):
    return mine()


def unfinished():
    return replace(mine(), model=None)


def mapped():
    return replace(mine(), optimizer={"type": "tiger"})


def nothing():
    pass


def broken():
    return replace(flava_debug(), name=1 / 0)


def refused():
    from flava_ds.errors import ConfigError

    raise ConfigError("no data here")
'''


@pytest.fixture
def folder(tmp_path) -> Path:
    """Returns a folder with the recipe, what it imports from beside it, and files that fail."""
    place = tmp_path / "project"
    (place / "package").mkdir(parents=True)
    (place / "tiger_recipe.py").write_text(RECIPE)
    (place / "neighbour.py").write_text("NAME = 'mine'\n")
    (place / "package" / "__init__.py").touch()
    (place / "package" / "inner.py").write_text(
        "from flava_ds.recipes.flava_debug import flava_debug as recipe\n"
    )
    (place / "package" / "relative.py").write_text("from .inner import recipe\n")
    (place / "bad_syntax.py").write_text("x = 1\n\ndef f(:\n    pass\n")
    (place / "bad_import.py").write_text("import os\nimport no_such_thing_at_all\n")
    (place / "bad_line.py").write_text("def g():\n    return {}['key']\n\nVALUE = g()\n")
    (place / "bad_call.py").write_text("import json\nVALUE = json.loads('{')\n")
    (place / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (place / "not-a-name.py").touch()
    (place / "taken").mkdir()
    (place / "taken" / "json.py").touch()
    return place


@pytest.fixture(autouse=True)
def own_code(folder, monkeypatch):
    """Forgets after each test what it has imported from the folder, and starts it there."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    defined, built_in = OptimizerConfig._defined, set(OptimizerConfig._built_in)
    others = {tag: defined.pop(tag) for tag in set(defined) - built_in}  # what other tests define
    yield
    for tag in set(defined) - built_in:  # a built-in one stays, as its module does
        del defined[tag]
    defined.update(others)
    for name, module in list(sys.modules.items()):
        if str(folder) in str(getattr(module, "__file__", None)):
            del sys.modules[name]


def run(capfd, *words: str) -> tuple[int, str, str]:
    """Runs flava-ds as in a new process; returns its status and what it has printed."""
    try:
        status = cli.main(list(words))
    except SystemExit as stop:
        status = stop.code
    return (status, *capfd.readouterr())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("gone.py:f", "gone.py: no such file; give a recipe as FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"),
        (
            "no.such.module:f",
            "no module named 'no.such.module', neither installed, nor on PYTHONPATH, nor in ",
        ),
        (
            "tiger_recipe.py",
            (
                "tiger_recipe.py: name its function too, as tiger_recipe.py:FUNCTION; it has mine, "
                "with_size, with_default"
            ),
        ),
        ("tiger_recipe.py:", "name its function too"),
        ("package.inner", "package.inner: name its function too, as package.inner:FUNCTION"),
        ("package.outer", "no recipe named 'package.outer'"),
        ("package/__init__.py:f", "is a package, not a file; give it by its module, package, with "),
        ("package/relative.py:f", "package; give it by its module, package.relative, with "),
        ("tiger_recipe.py:unfinished", "model is None; give it an object of FamilyConfig (flava, clip, "),
        (
            "tiger_recipe.py:mapped",
            "optimizer is of the class dict; give it an object of OptimizerConfig (adamw",
        ),
        ("tiger_recipe.py:mime", "tiger_recipe.py has no function 'mime'; did you mean 'mine'?"),
        ("tiger_recipe.py:zzz", "tiger_recipe.py has no function 'zzz'; it has mine, with_size"),
        ("tiger_recipe.py:LATER", "tiger_recipe.py has no function 'LATER'"),
        ("tiger_recipe.py:with_size", "tiger_recipe.py:with_size requires size; a recipe takes no arguments"),
        (
            "tiger_recipe.py:nothing",
            "tiger_recipe.py:nothing returned NoneType; a recipe returns a flava_ds.config.Config",
        ),
        ("tiger_recipe.py:broken", "tiger_recipe.py:44: ZeroDivisionError: division by zero"),
        ("tiger_recipe.py:refused", "tiger_recipe.py:50: no data here"),
        ("bad_syntax.py:f", "bad_syntax.py:3: SyntaxError: invalid syntax"),
        ("bad_import.py:f", "bad_import.py does not import: "),
        ("bad_import.py:f", "bad_import.py:2: ModuleNotFoundError: No module named 'no_such_thing_at_all'"),
        ("bad_line.py:f", "bad_line.py:2: KeyError: 'key'"),
        ("bad_call.py:f", "bad_call.py:2: JSONDecodeError: "),  # not the line of the library
        ("leaves.py:f", "leaves.py:2: SystemExit: 3"),
        ("not-a-name.py:f", "'not-a-name' is not a module name; rename the file"),
        ("taken/json.py:f", "taken/json.py: another module is named json ("),
        ("os.path:join", "os.path:join requires a; a recipe takes no arguments"),
        ("builtins:iter", "builtins:iter failed: "),
        ("package.inner:recipes", "package.inner has no function 'recipes'"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(recipe, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_places_are_told_from_names_and_files():
    for place in ("a.py:f", "a.py", "package.module:f", "/x/y.py:f"):
        assert outside.is_outside(place)
    for name in ("demo", "runs/demo/config.json", "c:/config.json", "s3://bucket/x", "zzz"):
        assert not outside.is_outside(name)
    here = Path.cwd()
    assert (
        outside.absolute("a/b.py:f") == f"{here}/a/b.py:f"
        and outside.absolute("b.py") == f"{here}/b.py"
        and outside.absolute("p.m:f") == "p.m:f"
    )
    assert outside.absolute("x.python/a.py.d/b.py:f") == f"{here}/x.python/a.py.d/b.py:f"
    assert (
        outside.absolute("demo") == "demo" and outside.absolute("runs/x/config.json") == "runs/x/config.json"
    )


def test_plugins_are_parted_from_the_other_words():
    assert outside.take_plugins(["demo", "--plugin", "a.py", "--seed", "3", "--plugin=b.c"]) == (
        ["a.py", "b.c"],
        ["demo", "--seed", "3"],
    )
    for words in (["--plugin"], ["--plugin="], ["--plugin", "--seed"]):
        with pytest.raises(ConfigError, match="--plugin needs a file or module after it"):
            outside.take_plugins(words)


def test_a_recipe_is_found_from_any_folder_and_takes_options(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder.parent)
    status, printed, complaint = run(
        capfd, "config", "project/tiger_recipe.py:mine", "--optimizer.stripes", "5", "--optimizer.lr=1e-4"
    )
    assert status == 0, complaint
    words = json.loads(printed)
    assert (
        words["name"] == "mine"
        and words["optimizer"]["type"] == "tiger"
        and (words["optimizer"]["stripes"], words["optimizer"]["lr"]) == (5, 1e-4)
    )
    complaint = "error: unknown option '--optimizer.strips'; did you mean '--optimizer.stripes'?\n"
    assert run(capfd, "config", "project/tiger_recipe.py:mine", "--optimizer.strips", "5") == (
        2,
        "",
        complaint,
    )
    assert (
        "--optimizer {adamw,lion,lamb,tiger}"
        in run(capfd, "config", "project/tiger_recipe.py:mine", "--help")[1]
    )
    assert load_recipe(f"{folder}/tiger_recipe.py:with_default").name == "mine"
    monkeypatch.chdir(folder)
    assert load_recipe("package.inner:recipe").name == "flava_debug"


def test_a_saved_configuration_asks_for_the_code_that_it_names_and_never_imports_it(
    folder, monkeypatch, capfd
):
    saved = folder.parent / "run" / "config.json"
    saved.parent.mkdir()
    words = to_dict(load_recipe("flava_debug"))
    words["optimizer"] |= {"type": "tiger", "stripes": 4}
    for key in ("name", "eps"):
        del words["optimizer"][key]
    saved.write_text(json.dumps(words, indent=2) + "\n")
    complaint = (
        f"error: {saved}: optimizer.type 'tiger' is none of adamw, lion, lamb; if code of your own "
        "defines it, add --plugin FILE.py, or import it first in Python\n"
    )
    for words in (("config", str(saved)), ("train", str(saved), "--dry-run"), ("report", str(saved.parent))):
        assert run(capfd, *words) == (2, "", complaint), words
    assert "tiger_recipe" not in sys.modules
    status, printed, complaint = run(
        capfd, "config", str(saved), "--plugin", "tiger_recipe.py", "--plugin", "package.inner"
    )
    assert status == 0 and json.loads(printed)["optimizer"]["stripes"] == 4, complaint
    assert "gone.py: no such file" in run(capfd, "config", str(saved), "--plugin", "gone.py")[2]


def test_a_saved_configuration_does_not_run_the_tasks_that_it_names(folder, monkeypatch, capfd):
    """Tasks in a Python file are code, so a command line names them, or the file as a plugin."""
    (folder / "own_tasks.py").write_text("from pathlib import Path\nPath('ran').touch()\nTASKS = ()\n")
    words = to_dict(load_recipe("flava_debug"))
    words["evaluation"] |= {"every_steps": 2, "tasks": ["own_tasks.py:mine"], "data_root": "."}
    (folder / "config.json").write_text(json.dumps(words))
    (folder / "own.yaml").write_text("base: config.json\n")
    complaint = (
        "error: evaluation.tasks names the code own_tasks.py, which a file cannot; if it is yours, add "
        "--plugin own_tasks.py\n"
    )
    for place in ("config.json", "own.yaml"):
        for command in (cli.main, lambda words: train.main(words[1:])):  # the ranks' own as well
            assert command(["train", place]) == 2
            assert capfd.readouterr().err == complaint
    assert run(capfd, "config", "config.json")[0] == 0 and not (folder / "ran").exists()
    (elsewhere := folder / "elsewhere").mkdir()
    with monkeypatch.context() as moved:  # --plugin own_tasks.py would find no such file here
        moved.chdir(elsewhere)
        assert (
            "if it is yours, name all tasks after --evaluation.tasks, that file by its place seen"
            in (run(capfd, "train", "../config.json")[2])
        )
    monkeypatch.setattr(launch, "check_inputs", lambda config: None)
    monkeypatch.setattr(train_command, "rehearse", lambda *_: [])  # it would want shards
    for trust in (("--plugin", "own_tasks.py"), ("--evaluation.tasks", "own_tasks.py")):
        status, printed, complaint = run(capfd, "train", "config.json", "--dry-run", "--ranks", "1", *trust)
        assert (status, complaint) == (0, "") and "own_tasks.py" in printed


def test_ranks_get_the_place_and_the_plugins_whatever_their_folder(folder, monkeypatch, capfd):
    monkeypatch.setattr(launch, "check_inputs", lambda config: None)
    monkeypatch.setattr(launch, "count_gpus", lambda: 0)
    monkeypatch.setattr(train_command, "rehearse", lambda *_: [])  # it would want shards
    words = ("train", "tiger_recipe.py:mine", "--dry-run", "--plugin", "neighbour.py", "--seed", "3")
    place = f"{folder}/tiger_recipe.py:mine --plugin={folder}/neighbour.py --seed 3\n"
    for ranks in (("--ranks", "1"), ("--ranks", "2"), ("--ranks", "2", "--max-restarts", "1")):
        status, printed, complaint = run(capfd, *words, *ranks)
        assert status == 0 and printed.endswith(f" flava_ds.train {place}"), (ranks, printed, complaint)


@pytest.mark.slow
def test_a_rank_takes_the_same_words(folder):
    words = [sys.executable, "-m", "flava_ds.train"]
    for more, message in (
        (
            ["tiger_recipe.py:mine", "--plugin", "neighbour.py", "--optimizer.strips", "3"],
            "error: unknown option '--optimizer.strips'; did you mean",
        ),
        (["demo", "--plugin"], "error: --plugin needs a file or module after it, e.g. --plugin recipe.py\n"),
    ):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
        done = subprocess.run(
            [*words, *more], capture_output=True, text=True, timeout=300, cwd=folder, env=environment
        )
        assert done.returncode == 2 and message in done.stderr, (more, done.stderr)
