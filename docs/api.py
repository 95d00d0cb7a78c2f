"""Renders the API reference from the docstrings as HTML, one page per module, with pdoc.

python docs/api.py [FOLDER [MODULE...]]        (default: docs/api, all modules; open FOLDER/index.html)
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
import textwrap
import warnings
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # documentation asks no GPU what it is

import flava_kernels
import pdoc
import pdoc.docstrings
import pdoc.render

import flava_ds

LEFT_OUT = ("flava_ds.demo", "flava_kernels.triton_ops")
"""A program, and kernels, which docs/kernels.md describes."""


def modules() -> list[str]:
    """Lists what is documented: all modules, also those of a package whose __all__ does not name them, which
    pdoc would not find by itself.
    """
    found = ["flava_ds", "flava_kernels"]
    for package in (flava_ds, flava_kernels):
        found += [part.name for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in found if not f"{name}.".startswith(tuple(f"{left}." for left in LEFT_OUT))]


SHAPES = re.compile(r"^Shapes:\n((?:[ \t]+\S.*(?:\n|$))+)", re.MULTILINE)


def with_aligned_shapes(docstring: str) -> str:
    """Keeps the columns of the `Shapes:` sections, which Markdown would run together."""
    return SHAPES.sub(
        lambda found: f"**Shapes**\n\n```text\n{textwrap.dedent(found[1]).rstrip()}\n```\n", docstring
    )


def main() -> None:
    """Writes the pages."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "api")
    # pdoc looks for names of __all__ that are imported on first use among the modules.
    vars(flava_ds).update({name: getattr(flava_ds, name) for name in flava_ds.__all__})
    # Inherited dataclass fields name types of another module; pdoc prints such annotations as they are.
    warnings.filterwarnings("ignore", module="pdoc.doc_types")
    # and finds most modules a second time, below their packages.
    warnings.filterwarnings("ignore", message=".*already been added", module="pdoc.extract")
    google = pdoc.docstrings.google
    pdoc.docstrings.google = lambda docstring: google(with_aligned_shapes(docstring))
    pdoc.render.configure(docformat="google", search=False)
    pdoc.pdoc(*(sys.argv[2:] or modules()), *(f"!{name}" for name in LEFT_OUT), output_directory=out)
    print(out / "index.html")


if __name__ == "__main__":
    main()
