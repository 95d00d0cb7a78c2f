"""Published numbers belong to tasks and numbers that exist, and add up to the paper's averages."""

import numpy as np
import pytest

from flava_ds.config.family import FamilyConfig
from flava_ds.config.variants import choices
from flava_ds.evaluation import published
from flava_ds.evaluation.paper_table import COLUMNS, DOMAINS, OWN_PAPERS, RIVAL_NUMBERS, RIVALS, ROWS
from flava_ds.evaluation.registry import tasks

AVERAGES = {  # as the paper prints them, by domain, of columns 1 to 14
    "vision": "57.46 - 76.12 79.14 78.57 79.59 79.35 78.49 79.55 78.29 78.65 79.44 76.12 82.57",
    "text": "- 71.55 62.99 64.80 68.70 68.22 74.22 75.98 75.78 75.55 77.40 78.19 46.44 50.51",
    "pairs": "- - 66.42 66.25 67.11 68.11 69.11 69.05 70.61 67.32 69.23 69.92 62.02 67.29",
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_rows_add_up_to_the_averages_that_the_paper_prints(domain):
    rows = [row for row in ROWS if row.domain == domain]
    for column, printed in zip(COLUMNS, AVERAGES[domain].split(), strict=True):
        values = [row.values[column] for row in rows]
        if printed == "-":
            assert values == [None] * len(rows)
        else:
            assert 100 * np.mean(values) == pytest.approx(float(printed), abs=0.0151)


def test_every_published_number_has_its_task():
    write = {"accuracy", "matthews", "accuracy_and_f1", "pearson", "roc_area", "vqa_accuracy"}
    write |= {f"{kind}_score" for kind in ("text", "image", "group")}
    write |= {f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    for task, number in published._NUMBERS:
        assert task in tasks() and number in write
        assert all(
            0 < found.value < 1 and found.source and found.of for found in published.published(task, number)
        )
    assert len(ROWS) == 22 + 8 + 11
    for task, number, family in RIVAL_NUMBERS:
        assert task in tasks() and number in write | {"f1"} and family in choices(FamilyConfig)
        assert published.published(task, number, family)[0].source in (RIVALS, OWN_PAPERS)
    vilt, *_ = published.published("vqav2", "vqa_accuracy", "vilt")
    assert (vilt.of, vilt.value, vilt.source) == ("ViLT (test-dev)", 0.7126, OWN_PAPERS)
    found = {p.of: p.value for p in published.published("glue_mrpc", "f1", "visualbert")}
    assert found == {"VisualBERT": pytest.approx(0.821)}


def test_every_published_number_is_of_a_known_number_of_samples():
    of = {tasks()[task].data.name for task, _ in published._NUMBERS}
    assert of == published.TEST_SAMPLES.keys()
    assert published.as_many_as_published("coco", 5000) and published.as_many_as_published("coco", 4990)
    assert not published.as_many_as_published("coco", 20) and published.as_many_as_published("mine", 20)


def test_a_number_of_another_protocol_has_none():
    assert published.published("sst2_probe", "accuracy") == ()
