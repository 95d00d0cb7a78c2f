"""Every metric finds its place in a table, beside its references."""

import json
import tarfile

from flava_ds.demo.evaluation import tables

METRICS = {
    "zero_shot/fluent-emoji-flat/top5_accuracy": 0.3,
    "zero_shot/fluent-emoji-flat/top5_accuracy/chance": 0.01,
    "masked/mlm/loss_nats": 4.25,
    "linear_probe/a/group_accuracy": 0.5,
    "linear_probe/b/group_accuracy": 0.6,
    "linear_probe/a/new_measure": 0.7,
    "zero_shot/fluent-emoji-flat/top5_accuracy/pixel_1nn": 0.2,
    "novel/x/y": 0.1,
}


def test_every_metric_is_shown_once_and_references_are_none():
    shown = [measure.value for section in tables.sections(METRICS) for measure in section.measures]
    assert sorted(shown) == sorted(value for name, value in METRICS.items() if name.count("/") == 2)


def test_references_stand_beside_their_metric():
    [measure] = tables.sections(METRICS)[0].measures
    assert (measure.text, measure.chance_text, measure.pixels_text) == ("30.0 %", "1.0 %", "20.0 %")
    assert tables.headlines(METRICS) == [
        tables.measure(METRICS, tables.HEADLINES[0][0], tables.HEADLINES[0][2], tables.HEADLINES[0][1])
    ]


def test_sets_stay_together_and_losses_are_no_shares():
    by_title = {section.title: section.measures for section in tables.sections(METRICS)}
    assert [(m.set, m.what) for m in by_title["Linear probe"]] == [
        ("a", "group (9)"),
        ("a", "new measure"),
        ("b", "group (9)"),
    ]
    [loss] = by_title["Masked prediction"]
    assert loss.text == "4.250" and not loss.share and loss.chance_text == ""


def test_the_page_counts_the_groups_that_there_are(indexed_demo_data):
    found: dict[str, set[str]] = {"group": set(), "subgroup": set()}
    for path in indexed_demo_data.glob("pairs-train/*.tar"):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(".json"):
                    record = json.load(shard.extractfile(member))
                    for field, values in found.items():
                        values.add(record[field])
    for field, values in found.items():
        assert tables.WHAT[f"{field}_accuracy"] == f"{field} ({len(values)})"
    assert any(f"{len(found['group'])} groups" in words for _, _, words in tables.HEADLINES)
