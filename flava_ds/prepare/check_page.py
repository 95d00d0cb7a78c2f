"""The page of `flava-ds prepare check`: verdicts, distributions, samples and copies in one HTML file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flava_ds.data.decode import decode_image
from flava_ds.data.transforms import center_pixels
from flava_ds.prepare.check import NEAR_BITS, Check, quantiles
from flava_ds.report.charts import draw_histogram
from flava_ds.report.pictures import uri_of_bytes, uri_of_pixels
from flava_ds.report.template import markup, render
from flava_ds.report.template import write_page as write_file

MOST_BYTES = 100_000
"""Larger images are reduced, to keep the page small."""
_SHOWN_SIDE, _MOST_CHARACTERS, _MOST_GROUPS = 224, 240, 20


@dataclass(frozen=True)
class Shown:
    """One sample on the page; `uri` is empty for texts, `more` counts its other captions."""

    key: str
    text: str
    alt: str
    more: int
    uri: str = ""
    width: int = 0
    height: int = 0


def write_page(check: Check, path: Path) -> Path:
    """Writes the page and returns its path."""
    copies = [("Equal bytes", check.same_bytes[:_MOST_GROUPS], len(check.same_bytes))]
    if check.sizes:
        words = f"Look alike, at most {NEAR_BITS} of 64 bits differ"
        copies.append((words, check.look_alike[:_MOST_GROUPS], len(check.look_alike)))
    page = render(
        "check.html",
        title=Path(check.source.source.shards).name or check.source.source.shards,
        kind={"pair": "image-text pairs", "image": "images", "text": "texts"}[check.kind],
        check=check,
        charts=charts(check),
        samples=[_shown(check, number) for number in check.shown],
        copies=copies,
        facts=facts(check),
    )
    return write_file(path, page)


def charts(check: Check) -> list[dict[str, Any]]:
    """Draws the distributions; long tails are cut at the 99 % quantile."""
    ratios, sides = check.aspect_ratios, [min(size) for size in check.sizes]
    wanted = (
        ("Caption length", "tokens", check.token_lengths, check.max_tokens),
        ("Aspect ratio", "width / height", ratios, None),
        ("Shorter side", "pixels", sides, None),
        ("Samples per shard", "samples", check.samples_per_shard if check.shards > 1 else [], None),
    )
    drawn = []
    for title, unit, values, level in wanted:
        if values:
            spread = dict(quantiles(values))
            words = f"{unit}: median {spread['median']:.4g}, 95 % within {spread['95 %']:.4g}"
            most = max(sorted(values)[math.ceil(0.99 * (len(values) - 1))], level or 0)
            svg = markup(draw_histogram(f"{title} in {words}", values, most=most, level=level))
            drawn.append({"title": title, "words": words, "svg": svg})
    return drawn


def facts(check: Check) -> dict[str, list[tuple[str, str]]]:
    """Lists all numbers: table title -> rows."""
    need, unusable = check.need, [*check.damage.items(), *check.bad.items()]
    tables = {
        "Members": [(name, f"{n:,}") for name, n in sorted(check.members.items(), key=lambda item: -item[1])],
        "Formats": [(name, f"{n:,}") for name, n in check.formats.items()],
        "Unusable": [(name, f"{n:,}") for name, n in unusable] or [("none", "0")],
        "Left out before": [(name, f"{n:,}") for name, n in check.left_out.items()],
        "Speed": [
            ("one core", f"{check.samples_per_core_second:,.0f} samples/s"),
            ("this machine", f"{check.samples_per_second:,.0f} samples/s with {check.cores} cores"),
            (
                "needed",
                f"{need.samples_per_second:,.0f} samples/s for {need.gpus} x "
                f"{need.images_per_second_per_gpu:,.0f}",
            ),
        ],
    }
    for name, values in (
        ("Caption tokens", check.token_lengths),
        ("Width / height", check.aspect_ratios),
        ("Samples per shard", check.samples_per_shard),
    ):
        if values:
            tables[name] = [(label, f"{value:.4g}") for label, value in quantiles(values)]
    return {name: rows for name, rows in tables.items() if rows}


def _shown(check: Check, number: int) -> Shown:
    """Reads one sample again for the page: as stored if small, otherwise reduced."""
    fields = check.source.read(number)
    sample = check.source.decode(fields, number, 0, draw=0.0)
    text = sample.text or ""
    text = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rsplit(" ", 1)[0] + " ..."
    about = (sample.key, text, text or f"sample {sample.key}", max(0, len(sample.captions) - 1))
    if sample.image is None:
        return Shown(*about)
    if len(fields["image"]) <= MOST_BYTES:
        return Shown(*about, uri_of_bytes(fields["image"]), sample.image.shape[2], sample.image.shape[1])
    reduced = center_pixels([decode_image(fields["image"])], _SHOWN_SIDE)[0]
    return Shown(*about, uri_of_pixels(reduced), _SHOWN_SIDE, _SHOWN_SIDE)
