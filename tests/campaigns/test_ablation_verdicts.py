"""Verdicts from made-up results of known differences."""

import dataclasses

import numpy as np
import pytest

from flava_ds.campaigns.ablation import DOMAINS, MACRO, ORDERINGS, Ordering, difference, domain_parts, judge
from flava_ds.recipes.ablation import BALANCED, EQUAL_COMPUTE, ROWS

CONCEPTS, WORDS = 40, 60


def result(row, seed, **levels):
    """Makes a result whose numbers lie `levels` apart from noise that all rows of a seed share."""
    draw = np.random.default_rng(seed)
    counts = {"concepts": [2] * CONCEPTS, "words": [3] * WORDS}
    metrics = {}
    for domain, names in {"vision": "ab", "language": "c", "multimodal": "de"}.items():
        clusters = "words" if domain == "language" else "concepts"
        for name in names:
            noise = draw.integers(0, 500, len(counts[clusters]))
            if domain in levels:
                sums = (noise + 1000 * levels[domain]).astype(int).tolist()
                metrics[f"{domain}/{name}"] = {"clusters": clusters, "scale": 1000, "sums": sums}
    return {"row": row, "seed": seed, "metrics": metrics, "counts": counts}


def score(results, domain):
    """Adds a row's parts up."""
    return sum(weight * part.values().mean() for weight, part in domain_parts(results, domain))


def test_a_domain_is_the_mean_of_its_numbers_and_a_missing_one_counts_zero():
    whole = [result("x", 0, vision=0.2, language=0.3, multimodal=0.4)]
    part = [result("y", 0, vision=0.2)]
    vision, language, multimodal = (score(whole, domain) for domain in DOMAINS)
    metrics = whole[0]["metrics"]
    by_hand = [100 * sum(metrics[f"vision/{name}"]["sums"]) / 1000 / 80 for name in "ab"]
    assert vision == pytest.approx(sum(by_hand) / 2)
    assert score(whole, MACRO) == pytest.approx((vision + language + multimodal) / 3)
    assert score(part, MACRO) == pytest.approx(vision / 3)
    assert domain_parts(part, "language") == []


def test_differences_are_of_the_same_items():
    ours = [result("x", seed, vision=0.3) for seed in range(3)]
    theirs = [result("y", seed, vision=0.2) for seed in range(3)]
    estimate = difference(ours, theirs, "vision")
    # 0.1 more per concept of two drawings, without any noise left.
    assert (estimate.value, estimate.standard_error) == pytest.approx((5.0, 0.0), abs=1e-9)


def test_verdicts_of_rows_that_are_better_worse_equal_and_not_there():
    levels = {"good": 0.4, "bad": 0.1, "like good": 0.4}
    results = {row: [result(row, seed, vision=level) for seed in range(3)] for row, level in levels.items()}
    for own in results["like good"]:  # half of the concepts better, half worse
        for entry in own["metrics"].values():
            entry["sums"] = [
                value + (300 if place % 2 else -300) for place, value in enumerate(entry["sums"])
            ]
    results["one seed"] = [result("one seed", 1, vision=0.4)]
    asked = [
        Ordering(higher, lower, "vision", 1.0, "")
        for higher, lower in (("good", "bad"), ("bad", "good"), ("like good", "good"), ("good", "one seed"))
    ]
    judged = judge(results, [*asked, Ordering("good", "absent", "vision", 1.0, "")])
    assert [each.verdict for each in judged] == [
        *("holds", "reversed", "unresolved", "one seed", "not run yet"),
    ]
    assert [each.seeds for each in judged] == [3, 3, 3, 1, 0]
    # Those that were not run count in the correction: five questions, the smallest p five times itself.
    assert judged[0].adjusted_p == pytest.approx(5 * judged[0].estimate.p)


def test_seeds_are_paired_by_number_whatever_the_order():
    ours = [result("x", seed, vision=0.3) for seed in (2, 0, 1)]
    theirs = [result("y", seed, vision=0.2) for seed in (1, 2)]
    [judged] = judge({"x": ours, "y": theirs}, [Ordering("x", "y", "vision", 1.0, "")])
    assert judged.seeds == 2 and judged.estimate.standard_error == pytest.approx(0, abs=1e-9)


def test_orderings_are_about_rows_of_the_paper():
    rows = {row for ordering in ORDERINGS for row in (ordering.higher, ordering.lower)}
    assert rows == set(ROWS) - {*EQUAL_COMPUTE, *BALANCED, "untrained"}
    assert all(ordering.paper_gap > 0 for ordering in ORDERINGS)
    assert len({dataclasses.astuple(ordering)[:3] for ordering in ORDERINGS}) == len(ORDERINGS)
