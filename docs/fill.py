"""Fills the generated blocks of README.md and docs/*.md from committed results, so that no number there is
typed by hand.

    python docs/fill.py [--check]

A block lies between `<!-- generated: NAME -->` and `<!-- end of generated -->`; the modules of docs/blocks/
hold the function of every NAME. `--check` changes nothing, names the pages that differ from the results, and
then exits with status 1.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import blocks

Block = Callable[[Path], str]
MARKS = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end of generated -->)", re.DOTALL)
NOT_MEASURED = "Not measured yet."
WIDTH = 110
"""Columns of a line of prose."""
KEEPS_ITS_LINES = ("|", "#", "!", " ")
"""How a line of a table, a heading, a picture or indented code begins."""


def find_blocks() -> dict[str, Block]:
    """Collects the BLOCKS of every module of docs/blocks/.

    Raises: SystemExit when two modules fill one name.
    """
    found: dict[str, Block] = {}
    for module in pkgutil.iter_modules(blocks.__path__):
        for name, block in importlib.import_module(f"blocks.{module.name}").BLOCKS.items():
            if name in found:
                raise SystemExit(
                    f"error: docs/blocks/{module.name}.py fills block '{name}', which another module "
                    "fills already; rename it"
                )
            found[name] = block
    return found


def pages_of(root: Path) -> list[Path]:
    """Lists the pages that may hold blocks."""
    return [page for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if page.is_file()]


def wrap(body: str) -> str:
    """Breaks prose at WIDTH, never inside `code`; tables, code and pictures keep their lines."""
    lines, in_code = [], False
    for line in body.split("\n"):
        in_code ^= line.startswith("```")
        if in_code or len(line) <= WIDTH or line.startswith(KEEPS_ITS_LINES):
            lines.append(line)
            continue
        unbroken = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), line)
        parts = textwrap.wrap(unbroken, WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [part.replace("\0", " ") for part in parts]
    return "\n".join(lines)


def fill(page: Path, root: Path, known: dict[str, Block]) -> tuple[str, list[str]]:
    """Returns the page's text with its blocks filled, and which of them have no results; those say so.

    Raises: SystemExit on a block that no function fills.
    """
    absent = []

    def replace(match: re.Match[str]) -> str:
        opening, name, _, closing = match.groups()
        if name not in known:
            raise SystemExit(
                f"error: {page.name} has a generated block '{name}', but only {', '.join(known)} can be "
                "filled; see docs/blocks/"
            )
        try:
            body = known[name](root)
        except FileNotFoundError as error:
            absent.append(f"{name} of {page.name} ({Path(error.filename).name})")
            body = NOT_MEASURED
        body = wrap(body.strip("\n"))
        return f"{opening}\n{body}\n\n{closing}" if body else f"{opening}{closing}"

    return MARKS.sub(replace, page.read_text(encoding="utf-8")), absent


def main() -> int:
    """Rewrites the pages, or compares them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(__file__).parents[1],
        help="repository whose pages and results are meant (default: this one)",
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 when a page differs"
    )
    options = parser.parse_args()
    known, stale = find_blocks(), []
    for page in pages_of(options.root):
        text, absent = fill(page, options.root, known)
        for name in absent:
            print(f"no results for block {name}", file=sys.stderr)
        if text != page.read_text(encoding="utf-8"):
            stale.append(page)
            if not options.check:
                page.write_text(text, encoding="utf-8")
    if options.check:
        for page in stale:
            print(
                f"error: {page.relative_to(options.root)} differs from the results; run `make docs`",
                file=sys.stderr,
            )
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
