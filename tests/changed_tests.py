"""python tests/changed_tests.py: runs the quick tests of what has changed since the branch began, what is not
committed included.

For a module these are the tests that mirror it (tests/data/test_index*.py for flava_ds/data/index.py), then
the tests that import it, then those that mirror the modules that import it; for a helper of the tests the
tests that import it; for any other file those that name it. The closest run first. Tests that start
processes, compile or take long are left to `make test`, and so is what has not begun after SECONDS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from import_graph import ROOT, imported_by

SECONDS = 80
"""Ruff, the conventions and the start take the rest of two minutes."""

QUICK = "not slow and not distributed and not triton and not aot and not gpu"
BEGINNINGS = ("origin/HEAD", "origin/main", "main", "master")
"""Where a branch may have left, in the order in which they are looked for."""


def git(*arguments: str) -> list[str]:
    """Returns the lines that git prints. Raises CalledProcessError where it fails."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def changed() -> list[str]:
    """Lists the files that differ from where the branch began, by their paths in the repository; those that
    are gone are not listed.
    """
    begin = "HEAD"
    for name in BEGINNINGS:
        done = subprocess.run(["git", "merge-base", "HEAD", name], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            begin = done.stdout.strip()
            break
    names = [*git("diff", "--name-only", begin), *git("ls-files", "--others", "--exclude-standard")]
    return [name for name in dict.fromkeys(names) if (ROOT / name).is_file()]


def is_test(path: Path) -> bool:
    """Tells whether pytest runs a file."""
    return path.name.startswith("test_") and path.suffix == ".py" and path.is_relative_to(ROOT / "tests")


def mirrors(path: Path, tests: Iterable[Path]) -> list[Path]:
    """Lists the tests that mirror a module: test_NAME.py and test_NAME_ASPECT.py in the folder of the same
    name under tests.
    """
    parts = path.relative_to(ROOT).parts
    if parts[0] == "flava_ds":
        folder, package = ROOT.joinpath("tests", *parts[1:-1]), parts[-2]
    elif parts[:2] == ("kernels", "flava_kernels"):
        inner = parts[2:-1] if parts[2] not in ("triton_ops", "cases") else ()
        folder, package = ROOT.joinpath("tests", "kernels", *inner), parts[-2]
    elif parts[0] == "docs":
        folder, package = ROOT / "tests" / "docs", "docs"
    else:
        return []
    name = package if path.stem == "__init__" else path.stem
    begins = f"test_{name}_"
    return [test for test in tests if test.parent == folder and f"{test.stem}_".startswith(begins)]


def selected(names: Iterable[str]) -> list[Path]:
    """Lists the test files of changed files, the closest first."""
    paths = [ROOT / name for name in names]
    files = sorted(
        ROOT / name for name in git("ls-files", "--cached", "--others", "--exclude-standard", "*.py")
    )
    files = [path for path in files if path.is_file()]
    tests = [path for path in files if is_test(path)]
    code = [path for path in paths if path.suffix == ".py" and not is_test(path)]
    importers = [path for path in files if not imported_by(path).isdisjoint(code)] if code else []
    steps = [
        [path for path in paths if is_test(path)],
        [test for path in code for test in mirrors(path, tests)],
        [test for test in tests if any(path.name in test.read_text(encoding="utf-8") for path in paths)],
        [path for path in importers if is_test(path)],
        [test for path in importers if not is_test(path) for test in mirrors(path, tests)],
    ]
    return list(dict.fromkeys(path for step in steps for path in step))


def main() -> int:
    """Prints what is selected and runs it; returns pytest's status."""
    names = changed()
    files = [str(path.relative_to(ROOT)) for path in selected(names)]
    print(f"{len(names)} files have changed; tests that belong to them:", *(files or ["none"]), sep="\n  ")
    if not files:
        return 0
    command = [sys.executable, "-m", "pytest", "-rfEs", "-m", QUICK, "--seconds", str(SECONDS), *files]
    status = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ).returncode
    return 0 if status == 5 else status


if __name__ == "__main__":
    sys.exit(main())
