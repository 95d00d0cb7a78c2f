"""Conventions that keep the code readable: sizes, import direction, light imports, mirrored tests, no
leftovers.
"""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [ROOT / "flava_ds", ROOT / "kernels"]
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 70
MOST_LINES_OF_A_KERNEL = 150

DEEPSPEED_FILES = {
    *(f"flava_ds/training/{name}.py" for name in ("engine", "engine_config", "deepspeed_fixes")),
    "flava_ds/ranks/deepspeed_launcher.py",
    "flava_ds/ranks/distributed.py",
    "flava_ds/training/whole_weights.py",
}
PROGRAM_TESTS = {
    "conventions",
    "packaging",
    "program",
    "interpreter_bf16",
    "hazards",
    "mutations",
    "gpu_suite",
    "changed_tests",
    "crashed_workers",
    "equality",
    "path_of_a_batch",
    "own_data",
    "object_storage",
    "pretend_gpu",
    "benchmarks",
}  # tests of the whole, which mirror no module

LEAVES = "errors allocator plain_text processes batch tensor_hash code_hash weightless"
BELOW = {
    **{name: set[str]() for name in LEAVES.split()},
    "config": {"errors", "plain_text"},
    "optimizers": {"errors", "config"},
    "layouts": {"errors", "weightless"},
    "layers": {"batch"},
    "storage": {"errors", "plain_text", "processes", "config"},
    "data": {"errors", "plain_text", "processes", "allocator", "config", "batch", "storage"},
    "codebook": {"errors", "plain_text", "config", "data", "storage", "tensor_hash"},
    "regions": {"errors", "config", "storage", "tensor_hash"},
    "objectives": {"errors", "config", "batch", "layers", "data"},
    "ranks": {"errors", "plain_text", "processes", "allocator", "config", "storage"},
    "training": {"errors", "weightless", "config", "batch", "layers", "objectives", "optimizers", "ranks"},
    "families": {
        "errors",
        "weightless",
        "config",
        "batch",
        "layers",
        "layouts",
        "data",
        "objectives",
        "training",
    },
    "watching": {"errors", "plain_text", "config", "storage", "batch", "objectives", "ranks", "training"},
    "checkpoints": {"errors", "plain_text", "config", "storage", "ranks", "training", "watching"},
    "recipes": {"errors", "config", "objectives", "optimizers", "families"},
    "scaling": {
        "errors",
        "weightless",
        "code_hash",
        "config",
        "recipes",
        "storage",
        "batch",
        "data",
        "codebook",
        "optimizers",
        "ranks",
        "training",
        "watching",
    },
    "hf": {
        "errors",
        "config",
        "storage",
        "batch",
        "layouts",
        "data",
        "codebook",
        "objectives",
        "families",
        "checkpoints",
    },
    "evaluation": {
        "errors",
        "weightless",
        "tensor_hash",
        "config",
        "batch",
        "storage",
        "data",
        "codebook",
        "families",
        "ranks",
        "training",
        "checkpoints",
        "hf",
        "regions",
    },
    "report": {
        "plain_text",
        "errors",
        "config",
        "storage",
        "batch",
        "data",
        "codebook",
        "evaluation",
        "watching",
        "scaling",
    },
}
"""What each part of flava_ds may import at the top of a module; parts that are not listed (commands, build,
demo) may import all.
"""


def python_files(*folders: Path) -> list[Path]:
    """Lists the project's Python files."""
    return sorted(
        path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts
    )


def name_of(path: Path) -> str:
    """Returns the path relative to the repository."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Parses a file once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Returns the dotted names that a file imports, without those under `if TYPE_CHECKING`."""
    tree = tree_of(path)
    for_types = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.unparse(guard.test)
        for node in ast.walk(guard)
    }
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(names: set[str]) -> set[str]:
    """Returns the distributions' import names."""
    return {name.split(".")[0] for name in names}


def test_files_and_functions_are_short():
    long = []
    for path in python_files(*CODE, ROOT / "tests", ROOT / "docs", ROOT / "benchmarks"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES_OF_A_FILE:
            long.append(f"{name_of(path)}: {lines} lines")
        most = MOST_LINES_OF_A_KERNEL if "triton_ops" in path.parts else MOST_LINES_OF_A_FUNCTION
        for node in ast.walk(tree_of(path)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.end_lineno - node.lineno + 1 > most
            ):
                long.append(
                    f"{name_of(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
                )
    assert not long, "\n".join(long)


def test_heavy_libraries_stay_in_their_places():
    wrong = []
    for path in python_files(*CODE):
        name, imported = name_of(path), roots(imports_of(path))
        if "transformers" in imported and not name.startswith("flava_ds/hf/"):
            wrong.append(f"{name} imports transformers, which belongs under flava_ds/hf")
        if "deepspeed" in imported and name not in DEEPSPEED_FILES:
            wrong.append(f"{name} imports deepspeed, which belongs in {sorted(DEEPSPEED_FILES)}")
        if "triton" in imported and "triton_ops" not in path.parts:
            wrong.append(f"{name} imports triton, which belongs under triton_ops")
    assert not wrong, "\n".join(wrong)


def test_kernels_depend_on_torch_only():
    allowed = {"torch", "triton", "flava_kernels"} | set(sys.stdlib_module_names)
    wrong = {
        name_of(path): extra
        for path in python_files(ROOT / "kernels")
        if (extra := roots(imports_of(path)) - allowed)
    }
    assert not wrong


def test_imports_point_downwards():
    wrong = []
    for path in python_files(ROOT / "flava_ds"):
        part = path.relative_to(ROOT / "flava_ds").parts[0].removesuffix(".py")
        if part not in BELOW:
            continue
        for name in imports_of(path, top_level_only=True):
            words = name.split(".")
            if words[0] == "flava_ds" and len(words) > 1 and words[1] not in BELOW[part] | {part}:
                wrong.append(f"{name_of(path)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_part_is_above_itself():
    """The table of import directions has no circle: each part stands in one row above all that it
    may import."""
    rest = dict(BELOW)
    while rest:
        lowest = {part for part, below in rest.items() if not below & rest.keys()}
        assert lowest, f"a circle among {sorted(rest)}"
        rest = {part: below for part, below in rest.items() if part not in lowest}


MODELS_KNOWN_BY_NOBODY = re.compile(
    r"\b(mim|mlm|itm|mmm_image|mmm_text|global_contrastive|dino|simclr|(Flava|Dino|Simclr)\w*"
    r"|(image|text|multimodal)_masked)\b"
)
FREE_OF_MODELS = (
    "training",
    "watching",
    "checkpoints",
    "data",
    "storage",
    "ranks",
    "batch.py",
    "build.py",
    "train.py",
)


def test_trainer_and_loader_name_no_model_and_no_objective():
    """Prose may give one as an example; code may not."""
    named = []
    for path in python_files(ROOT / "flava_ds"):
        if path.relative_to(ROOT / "flava_ds").parts[0] not in FREE_OF_MODELS:
            continue
        for node in ast.walk(tree_of(path)):
            words = [getattr(node, field, None) for field in ("id", "attr", "name", "arg")]
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
            words += [node.value] if is_text else []
            named += [
                f"{name_of(path)}:{node.lineno} {word}"
                for word in words
                if isinstance(word, str) and MODELS_KNOWN_BY_NOBODY.fullmatch(word)
            ]
    assert not named, "\n".join(named)


def test_importing_any_module_is_light():
    """Only the builder of the demo's data may need a package (the SVG renderer) that is not installed."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in python_files(ROOT / "flava_ds")
    ]
    # torch's counter loads triton
    kernels = [
        path
        for path in python_files(ROOT / "kernels")
        if "triton_ops" not in path.parts and path.name != "flops.py"
    ]
    names += [".".join(path.relative_to(ROOT / "kernels").with_suffix("").parts) for path in kernels]
    code = """
import importlib, sys
bad = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        if error.name != "resvg_py":
            raise
    for heavy in ("triton", "deepspeed", "transformers"):
        if heavy in sys.modules:
            bad.append(f"{name} loads {heavy}")
            sys.modules.pop(heavy)
import torch
if torch.cuda.is_initialized():
    bad.append("a CUDA device was started")
sys.exit("\\n".join(bad) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_transformers_and_the_kernels_live_together():
    """transformers imports an optional package called `kernels`; ours must never be taken for it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    pytest.importorskip("transformers")
    code = "import flava_kernels, transformers; from transformers import FlavaConfig; FlavaConfig()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_test_file_mirrors_a_module():
    """tests/models/test_flava.py tests flava_ds/families/flava/model.py; test_flava_gradients.py would test
    an aspect of it.
    """
    lonely = []
    for path in python_files(ROOT / "tests"):
        if not path.name.startswith("test_") or path.parent.name in ("launchers", "strangers"):
            continue
        name = path.stem.removeprefix("test_")
        folder = path.parent.relative_to(ROOT / "tests")
        homes = [
            ROOT / folder if folder.name == "docs" else ROOT / "flava_ds" / folder,
            ROOT / "kernels" / "flava_kernels",
            ROOT / "kernels" / "flava_kernels" / "triton_ops",
        ]
        homes = homes[1:] if folder.parts[:1] == ("kernels",) else homes[:1]
        modules = {module.stem for home in homes for module in home.glob("*.py")} | {folder.name}
        if (
            not any(name == module or name.startswith(f"{module}_") for module in modules)
            and name not in PROGRAM_TESTS
        ):
            lonely.append(name_of(path))
    assert not lonely


def test_public_names_have_docstrings():
    bare = []
    for path in python_files(*CODE):
        if path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip():
            continue
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            bare.append(name_of(path))
        public = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        bare += [
            f"{name_of(path)}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)
        ]
    assert not bare, "\n".join(bare)


def test_no_leftovers():
    """No marks of unfinished work, no path of somebody's machine, no address of a package index."""
    marks = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])
    places = "|".join(rf"(?<![\w.])/{folder}/\w" for folder in ("work", "root", "home"))
    pattern = re.compile(rf"\b({marks})\b|{places}|--(extra-)?index" + r"-url|pypi" + r"\.org")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix
            not in (".py", ".md", ".sh", ".sbatch", ".yaml", ".toml", ".json", ".html", ".css", "")
            or not path.is_file()
        ):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_names_of_test_files_are_unique():
    """pytest imports a file of a folder without __init__.py by its bare name, and one per name."""
    paths = [
        path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()
    ]
    twice = [name for name, count in Counter(path.name for path in paths).items() if count > 1]
    assert not twice, twice
