"""docs/ablation.md: what each row of the ablation reached beside the paper's table, and each ordering's
verdict, from the results of `flava-ds ablation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks import campaign_results, markdown_table
from flava_ds.campaigns.ablation import (
    DOMAINS,
    MACRO,
    ORDERINGS,
    TABLE,
    Ordering,
    domain_parts,
    judge,
    numbers_of,
    spelled,
)
from flava_ds.campaigns.campaign import plan
from flava_ds.evaluation.paired import bootstrap
from flava_ds.recipes.ablation import BALANCED

PAPER: dict[str, tuple[float | None, float | None, float | None, float]] = {
    "mim": (57.46, None, None, 19.15),
    "mlm": (None, 71.55, None, 23.85),
    "flava_c_local": (76.12, 62.99, 66.42, 68.51),
    "flava_c": (79.14, 64.80, 66.25, 70.06),
    "flava_mm": (79.35, 74.22, 69.11, 74.23),
    "flava_no_init": (78.29, 75.55, 67.32, 73.72),
    "flava": (79.44, 78.19, 69.92, 75.85),
    "clip": (76.12, 46.44, 62.02, 61.52),
}
"""Averages over the tasks of a domain, and of the three domains: tables 3 and 4."""
COLUMNS = (*DOMAINS, MACRO)
BESIDES = (
    ("flava", "flava_no_init", "equal joint steps"),
    ("flava", "flava_no_init_equal_compute", "equal compute"),
    ("flava", "flava_mm_equal_compute", "equal compute"),
    ("clip", "flava", "equal pair steps"),
    ("clip", "flava_c", "equal pair steps"),
    *((row, "flava_no_init", "equal steps") for row in BALANCED),
)
"""Rows that are compared without having been named before the first run, and what they have in common."""


def rows(root: Path) -> str:
    """Compares every row's domains with the paper's, with standard errors over seeds and items."""
    found = campaign_results(root, "ablation")
    lines = []
    for row in TABLE.rows:
        paper = ["" if value is None else f"{value:.1f}" for value in PAPER.get(row, (None,) * 4)]
        own = [_score(found[row], column) if row in found else "not run" for column in COLUMNS]
        lines.append([f"`{row}`", len(found.get(row, ())), _work(found.get(row, ())), *own, *paper])
    header = ["row", "seeds", "TFLOP", *COLUMNS, *(f"paper: {column}" for column in COLUMNS)]
    return markdown_table(header, lines)


def _work(results: Sequence[dict[str, Any]]) -> str:
    """Returns what a run computed in training, which the first results do not say."""
    known = [result["training_flops"] for result in results if "training_flops" in result]
    return f"{max(known) / 1e12:.1f}" if known else ""


def _score(results: list[dict[str, Any]], domain: str) -> str:
    parts = domain_parts(results, domain)
    if not parts:
        return ""
    if len(results) < 2:
        return f"{sum(weight * part.values().mean() for weight, part in parts):.1f}"
    estimate = bootstrap(parts)
    return f"{estimate.value:.1f} ± {estimate.standard_error:.1f}"


def numbers(root: Path) -> str:
    """Lists the numbers behind the domains, as means over seeds, in per cent."""
    found = campaign_results(root, "ablation")
    names = sorted({name for results in found.values() for name in results[0]["metrics"]})
    names = [name for domain in DOMAINS for name in names if name.startswith(domain)]
    lines = []
    for row in (row for row in TABLE.rows if row in found):
        own = {name: part for domain in DOMAINS for name, part in numbers_of(found[row], domain).items()}
        cells = [f"{100 * own[name].values().mean():.1f}" if name in own else "" for name in names]
        lines.append([f"`{row}`", *cells])
    return markdown_table(["row", *(name.split("/")[1].replace("_", " ") for name in names)], lines)


def verdicts(root: Path) -> str:
    """Lists every ordering with its difference and verdict."""
    judged = judge(campaign_results(root, "ablation"))
    lines = []
    for each in judged:
        asked, estimate = each.ordering, each.estimate
        cells = ["", "", ""]
        if estimate is not None and each.adjusted_p is not None:
            low, high = estimate.interval
            cells = [
                f"{estimate.value:+.1f} ± {estimate.standard_error:.1f}",
                f"{low:+.1f} to {high:+.1f}",
                f"{each.adjusted_p:.2g}",
            ]
        said = [f"+{asked.paper_gap:.1f}", asked.expected, each.seeds]
        lines.append([spelled(asked), *said, *cells, f"**{each.verdict}**"])
    header = ["ordering", "paper", "expected before", "seeds", "here", "95 % interval", "p, Holm", "verdict"]
    counted = ", ".join(
        f"{sum(each.verdict == name for each in judged)} {name}"
        for name in ("holds", "reversed", "unresolved", "one seed", "not run yet")
    )
    return f"{markdown_table(header, lines)}\n\nOf {len(ORDERINGS)} orderings: {counted}."


def besides(root: Path) -> str:
    """Compares rows of which no ordering was named."""
    asked = [Ordering(higher, lower, MACRO, 0.0, equal) for higher, lower, equal in BESIDES]
    lines = []
    for each in judge(campaign_results(root, "ablation"), asked):
        name = f"`{each.ordering.higher}` - `{each.ordering.lower}`"
        if each.estimate is None:
            lines.append([name, each.ordering.expected, each.verdict, ""])
            continue
        low, high = each.estimate.interval
        own = f"{each.estimate.value:+.1f} ± {each.estimate.standard_error:.1f}"
        lines.append([name, each.ordering.expected, own, f"{low:+.1f} to {high:+.1f}"])
    return markdown_table(["macro", "at", "difference", "95 % interval"], lines)


def work(root: Path) -> str:
    """Says what all runs computed and how long they took. A first result that does not say its FLOPs counts
    like the row's others.
    """
    found = campaign_results(root, "ablation")
    flops = sum(
        len(results) * max(result.get("training_flops", 0) for result in results)
        for results in found.values()
    )
    hours = {
        part: sum(r["seconds_since_last_start"][part] for results in found.values() for r in results) / 3600
        for part in ("train", "measure")
    }
    return (
        f"All rows and seeds together are {flops / 1e12:,.0f} TFLOP of training. On the cores named below, "
        f"which were\nshared with other work, training took {hours['train']:.1f} hours and measuring "
        f"{hours['measure']:.1f}, each run counted from its last start."
    )


def campaign(root: Path) -> str:
    """Says which runs these are."""
    found = [result for results in campaign_results(root, "ablation").values() for result in results]
    commits = sorted({result["code"]["commit"][:7] for result in found})
    machines = sorted({result["machine"]["processor"] for result in found})
    seconds = [sum(result["seconds_since_last_start"].values()) for result in found]
    of = len(plan(TABLE, list(TABLE.rows), range(3), "small", root))
    return (
        f"{len(found)} of {of} runs are finished, by commit{'s' * (len(commits) > 1)} {', '.join(commits)} "
        f"on {', '.join(machines)}, whose cores were shared with other work: a run took "
        f"{min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes there."
    )


BLOCKS = {
    "ablation_rows": rows,
    "ablation_numbers": numbers,
    "ablation_verdicts": verdicts,
    "ablation_besides": besides,
    "ablation_campaign": campaign,
    "ablation_work": work,
}
