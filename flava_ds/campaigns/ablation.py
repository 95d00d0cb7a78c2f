"""The paper's ablation: its rows; its orderings, written down before the first run; how runs decide each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flava_ds.campaigns.campaign import Run, Table
from flava_ds.config import Config
from flava_ds.evaluation.paired import Estimate, Measured, bootstrap, holm, verdict
from flava_ds.recipes.ablation import PAIR_STEPS, ROWS, ablation
from flava_ds.recipes.stages import Stage

if TYPE_CHECKING:
    from flava_ds.evaluation.frozen_model import FrozenModel

DOMAINS = ("vision", "language", "multimodal")
MACRO = "macro"
Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Row -> the results of its seeds, of the same seeds in the same order."""

RAW_PIXELS = "raw_pixels"
ONLY = {"mim": ("vision",), "mlm": ("language",), RAW_PIXELS: ("vision",)}
"""Rows that have not learned every domain, as in the paper, or that have no text."""


LARGE = "large"
"""The work of twice the pair steps, which is measured more widely."""
WIDER = {
    "vision": ("vision", "other_pictures"),
    "language": ("glosses", "reviews"),
    "multimodal": ("multimodal", "category_question"),
}
"""What that measures of each domain."""


def domains_of(row: str, work: str) -> tuple[str, ...]:
    """Returns what a row is measured on."""
    domains = ONLY.get(row, DOMAINS)
    return tuple(own for domain in domains for own in WIDER[domain]) if work == LARGE else domains


def with_common_start(run: Run, stage: Stage) -> Config:
    """Returns a stage's configuration that begins with the same weights as the other rows of the seed.

    The objectives' heads take part in a family's draws, so rows would begin differently otherwise.
    """
    from flava_ds.storage.tensor_files import save_tensors

    if stage.config.model.type != "flava":
        return stage.config
    whole = replace(run, row="flava_no_init").sequence.stages[-1].config
    weights = whole.model.build(whole).state_dict()
    file = run.folder / "start.safetensors"
    kept = {name: weight for name, weight in weights.items() if name.startswith("model.")}
    save_tensors(kept, file)
    return replace(stage.config, initial_weights=str(file))


def raw_pixels() -> FrozenModel:
    """Returns a model that sees pixels as they are."""
    from flava_ds.data.tokenizer import WordPieceTokenizer
    from flava_ds.evaluation.pixels import pixel_model
    from flava_ds.recipes.demo import VOCABULARY

    return pixel_model(WordPieceTokenizer(str(VOCABULARY)))


TABLE = Table(
    name="ablation",
    rows=(*ROWS, RAW_PIXELS),
    recipe=ablation,
    works={"small": PAIR_STEPS, "tiny": 14, LARGE: 2 * PAIR_STEPS},
    domains=domains_of,
    begin=with_common_start,
    untrained={RAW_PIXELS: raw_pixels},
)
"""Works are pair steps of every run, but for the rows at equal compute."""


@dataclass(frozen=True)
class Ordering:
    """The paper's claim that one row is above another in a domain."""

    higher: str
    lower: str
    domain: str
    paper_gap: float
    """In points of the paper's average over the domain's tasks."""
    expected: str
    """What was expected here, before any run."""


ORDERINGS = (
    Ordering("flava_c", "mim", "vision", 21.68, "holds"),
    Ordering("mlm", "flava_c", "language", 6.75, "likely"),
    Ordering("flava_c", "flava_c_local", "vision", 3.02, "unresolved: few pairs in a batch"),
    Ordering("flava_mm", "flava_c", "language", 9.42, "likely"),
    Ordering("flava_mm", "flava_c", "multimodal", 2.86, "likely"),
    Ordering("flava_no_init", "flava_mm", "language", 1.33, "far more: its texts are of the test's kind"),
    Ordering("flava_mm", "flava_no_init", "vision", 1.06, "unresolved"),
    Ordering("flava_mm", "flava_no_init", "multimodal", 1.79, "unresolved"),
    Ordering("flava", "flava_no_init", "vision", 1.15, "small or nil"),
    Ordering("flava", "flava_no_init", "language", 2.64, "visible, from MLM"),
    Ordering("flava", "flava_no_init", "multimodal", 2.60, "unresolved"),
    Ordering("flava", "flava_mm", MACRO, 1.62, "likely, from language"),
    Ordering("flava_c", "clip", "language", 18.36, "likely"),
)
"""The gaps are differences of the paper's table 4 and table 3 (global against local)."""


def spelled(ordering: Ordering) -> str:
    """Returns an ordering as it is read."""
    return f"{ordering.higher} > {ordering.lower}, {ordering.domain}"


@dataclass(frozen=True)
class Judged:
    """What the runs say of an ordering; `estimate` is None while fewer than two seeds have both rows."""

    ordering: Ordering
    seeds: int
    estimate: Estimate | None
    adjusted_p: float | None
    verdict: str


def numbers_of(results: Sequence[Mapping[str, Any]], domain: str) -> dict[str, Measured]:
    """Returns a row's numbers of a domain; empty for a modality that the row lacks."""
    names = [name for name in results[0]["metrics"] if name.split("/")[0] == domain]
    return {name: number_of(results, name) for name in names}


def number_of(results: Sequence[Mapping[str, Any]], name: str) -> Measured:
    """Returns one number of a row, which all of its results have."""
    entries = [result["metrics"][name] for result in results]
    clusters = entries[0]["clusters"]
    sums = np.array([entry["sums"] for entry in entries]) / entries[0]["scale"]
    return Measured(clusters, sums, np.array(results[0]["counts"][clusters]))


def domain_parts(results: Sequence[Mapping[str, Any]], domain: str) -> list[tuple[float, Measured]]:
    """Returns the numbers whose weighted sum is a row's score in a domain, in points, with their weights.

    A domain is the mean of its numbers; `macro` is that of the three domains, with 0 for one that is lacking,
    as in the paper.
    """
    domains, parts = DOMAINS if domain == MACRO else (domain,), []
    for name in domains:
        numbers = numbers_of(results, name).values()
        parts += [(100 / len(numbers) / len(domains), number) for number in numbers]
    return parts


def difference(
    higher: Sequence[Mapping[str, Any]], lower: Sequence[Mapping[str, Any]], domain: str
) -> Estimate:
    """Estimates the paired difference of two rows with the same domains, in points."""
    both = zip(domain_parts(higher, domain), domain_parts(lower, domain), strict=True)
    return bootstrap([(weight, own.minus(other)) for (weight, own), (_, other) in both])


def judge(results: Results, orderings: Sequence[Ordering] = ORDERINGS) -> list[Judged]:
    """Judges every ordering from the seeds that both of its rows have.

    Orderings without two such seeds count in Holm's correction like the others: they were asked too.
    """
    estimates = [_estimate(results, ordering) for ordering in orderings]
    adjusted = holm([1.0 if estimate is None else estimate.p for _, estimate in estimates])
    return [
        Judged(ordering, seeds, None, None, "one seed" if seeds else "not run yet")
        if estimate is None
        else Judged(ordering, seeds, estimate, p, verdict(estimate.value, p))
        for ordering, (seeds, estimate), p in zip(orderings, estimates, adjusted, strict=True)
    ]


def _estimate(results: Results, ordering: Ordering) -> tuple[int, Estimate | None]:
    rows = [
        {result["seed"]: result for result in results.get(row, ())}
        for row in (ordering.higher, ordering.lower)
    ]
    both = sorted(rows[0].keys() & rows[1].keys())
    if len(both) < 2:
        return len(both), None
    higher, lower = ([row[seed] for seed in both] for row in rows)
    return len(both), difference(higher, lower, ordering.domain)
