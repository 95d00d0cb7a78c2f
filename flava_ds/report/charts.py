"""Line charts and histograms as inline SVG, without fixed size and colours, so that dark mode applies."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_POINTS = 300
"""Maximum per line; longer series are averaged in equal pieces."""
STAND_INS = {
    "#010101": "var(--ink-2)",
    "#020202": "var(--rule)",
    "#030303": "var(--series-1)",
    "#040404": "var(--series-2)",
}
"""matplotlib requires colours; the page's custom properties replace these afterwards."""
INK, RULE, FIRST, SECOND = STAND_INS
SIZE_INCHES = (3.0, 1.75)


@dataclass(frozen=True)
class Line:
    """One series of a chart, over steps; a faint one stays in the background."""

    steps: Sequence[float]
    values: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A single value at one step, such as a held-out loss."""

    step: float
    value: float


@dataclass(frozen=True)
class Scale:
    """The vertical axis: from zero, up to a common top, or logarithmic, which drops non-positive values.

    With `logarithmic_steps`, the horizontal axis is in powers of two.
    """

    from_zero: bool = False
    top: float | None = None
    logarithmic: bool = False
    logarithmic_steps: bool = False


def draw(
    description: str,
    lines: Sequence[Line],
    scale: Scale = Scale(),
    *,
    level: float | None = None,
    mark: Mark | None = None,
) -> str:
    """Draws lines over steps. Returns an <svg> element.

    `level` is a dashed horizontal line, e.g. the loss of guessing; `description` becomes the accessible name.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    with _chart(description) as (axes, result):
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        for line in lines:
            steps, values = thin(line.steps, line.values)
            dots = "o" if len(steps) < 3 else None
            axes.plot(
                steps,
                values,
                marker=dots,
                markersize=4,
                color=FIRST,
                linewidth=1.6,
                alpha=0.35 if line.faint else 1.0,
                solid_capstyle="round",
            )
        if mark is not None:
            axes.plot([mark.step], [mark.value], "o", color=SECOND, markersize=5, clip_on=False)
        if scale.logarithmic_steps:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            whole = all(float(step).is_integer() for line in lines for step in line.steps)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        if scale.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.margins(x=0.01)
        if scale.from_zero:
            axes.set_ylim(bottom=0, top=scale.top)
    return result[0]


def draw_histogram(
    description: str,
    values: Sequence[float],
    *,
    bins: int = 24,
    most: float | None = None,
    level: float | None = None,
) -> str:
    """Draws how many values fall into each of equally wide bins. Returns an <svg> element.

    The last bin includes values above `most`; `level` is a dashed vertical line, e.g. a limit.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    top = max(values) if most is None else most
    counts, edges = np.histogram(np.minimum(values, top), bins=bins, range=(min(min(values), top), top))
    with _chart(description) as (axes, result):
        axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.9, align="edge", color=FIRST)
        if level is not None:
            axes.axvline(level, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.margins(x=0.01)
    return result[0]


@contextmanager
def _chart(description: str) -> Iterator[tuple[Any, list[str]]]:
    """Yields axes in the page's style, and a list that receives the finished <svg> element on exit."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    result: list[str] = []
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": description,
            "font.size": 8,
            "axes.edgecolor": RULE,
            "text.color": INK,
        }
    ):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelcolor=INK, pad=4)
        yield axes, result
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    result.append(inline(stream.getvalue(), description))


def short(value: float) -> str:
    """Formats a tick's number in few characters: 0, 7.5e-4, 0.25, 12, 1.5k, 2M, 2e9."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 0.01:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:.4g}"


def thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Averages neighbouring points until at most MOST_POINTS remain, with the first and the last step."""
    size = -(-len(steps) // MOST_POINTS)
    if size <= 1:
        return list(steps), list(values)
    starts = range(0, len(steps), size)
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in starts]
    places = [float(steps[i]) for i in starts]
    places[-1] = float(steps[-1])
    return places, means


def smooth(values: Sequence[float], share: float = 0.03) -> list[float]:
    """Computes an exponential moving average over about `share` of the series, unbiased at the start."""
    keep = 1 - 1 / max(1.0, share * len(values))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def inline(svg: str, description: str) -> str:
    """Turns matplotlib's file into an inline element in the page's colours and fonts.

    Removes the prologue, metadata, fixed size and group names.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    label = html.escape(description, quote=True)
    svg = re.sub(
        r'<svg[^>]*viewBox="([^"]*)"[^>]*>',
        lambda opening: f'<svg viewBox="{opening[1]}" role="img" aria-label="{label}">',
        svg,
        count=1,
    )
    for color, name in STAND_INS.items():
        svg = svg.replace(color, name)
    svg = re.sub(r"(font(?:-family)?:[^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"\1var(--sans)", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
