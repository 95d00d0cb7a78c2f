"""Fills the templates of this folder and writes self-contained pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flava_ds.storage.atomic import write_whole

FOLDER = Path(__file__).parent


def render(
    template: str,
    *,
    filters: Mapping[str, Callable] | None = None,
    tests: Mapping[str, Callable] | None = None,
    **values: Any,
) -> str:
    """Fills a template, which may use `filters` and `tests`.

    Everything is escaped except the stylesheet and `markup`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters or {}
    environment.tests |= tests or {}
    style = markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)


def markup(text: str) -> Any:
    """Marks trusted text, such as a chart, as safe to insert."""
    from markupsafe import Markup

    return Markup(text)


def write_page(path: Path, page: str) -> Path:
    """Writes a page atomically, creating its folder. Returns its path."""
    write_whole(path, page)
    return path
