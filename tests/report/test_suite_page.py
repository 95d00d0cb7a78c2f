"""A suite's tables have the paper's rows, and averages over the same rows on both sides."""

from flava_ds.evaluation.suite import versions
from flava_ds.report.suite_page import HTML, facts, markdown, tables, write_pages


def result(numbers, **more):
    scores = {
        name: {"value": value, "n": 100, "unit": unit, "interval": interval}
        for name, (value, unit, interval) in numbers.items()
    }
    return {"scores": scores, "split": "test", **more}


REPORT = {
    "suite": "all",
    "model": "mine",
    "step": 7,
    "weights": "abc",
    "limit": None,
    "versions": versions(),
    "bootstrap": {"resamples": 1000, "seed": 0, "level": 0.95},
    "tasks": {
        "mnist_probe": result({"accuracy": (0.9, "share", [0.85, 0.95])}),
        "cifar10_probe": result(
            {"accuracy": (0.8, "share", None), "mean_per_class_accuracy": (0.79, "share", None)}
        ),
        "kitti_probe": result({"accuracy": (0.7, "share", None)}, splits="vtab"),
        "glue_cola": result({"matthews": (0.5, "correlation", [-0.25, 0.75])}),
        "own_probe": result({"loss": (1.25, "nats", [1.0, 1.5])}),
        "pcam_probe": {"failed": "no pcam in /data"},
        "coco_retrieval": {"skipped": "/data/coco: no such folder"},
    },
}


def test_rows_are_in_the_papers_order_with_its_numbers_and_averages():
    vision, text, others = tables(REPORT)
    assert [line.title for line in vision.lines[:-1]] == ["CIFAR10", "MNIST", "KITTI"]
    average = vision.lines[-1]
    assert average.title == "average of these 3 of 22" and average.value == "80.00"
    shown = dict(zip(vision.columns, average.published, strict=True))
    assert shown["FLAVA"] == f"{(92.87 + 98.42 + 89.04) / 3:.2f}" and "MLM" not in shown
    assert vision.lines[1].interval == "85.00 to 95.00" and vision.lines[2].splits == "vtab"
    assert "PCAM" in vision.absent and len(vision.absent) == 19
    assert (text.lines[0].value, text.lines[0].interval) == ("50.00", "-25.00 to 75.00")
    assert text.lines[0].title == "CoLA" and "MIM" not in text.columns
    assert [line.value for line in others.lines] == ["79.00 %", "1.2500 nats"]
    assert others.lines[1].interval == "1.0000 nats to 1.5000 nats"


def test_what_is_published_for_other_samples_is_left_out():
    kitti = REPORT["tasks"]["kitti_probe"] | {"departures": ["splits vtab"]}
    vqa = result({"vqa_accuracy": (0.6, "share", None)}, departures=[])
    vision, _, pairs, _ = tables({**REPORT, "tasks": REPORT["tasks"] | {"kitti_probe": kitti, "vqav2": vqa}})
    assert set(vision.lines[2].published) == {"–"} == set(vision.lines[-1].published)
    assert vision.lines[1].published[vision.columns.index("FLAVA")] == "98.42"
    assert pairs.lines[0].title == "VQAv2 (published: test-dev)"


def test_markdown_says_what_the_numbers_depend_on_and_what_was_not_run():
    page = markdown(REPORT)
    assert "| MNIST | test | 90.00 | 85.00 to 95.00 | 100 | 98.42 |" in page
    assert "- `pcam_probe`: no pcam in /data" in page and "- `coco_retrieval`: /data/coco" in page
    assert "95 % of 1000 resamples, seed 0" in page
    assert page.count("| % |") == 2 and "| own_probe loss | test | 1.2500 nats |" in page
    named = dict(facts(REPORT | {"average": "ema"}))
    assert named["weights"] == "abc" and named["torch"] == versions()["torch"] and "limit" not in named
    assert named["average"] == "ema"


def test_tasks_without_data_are_folded_and_counted_and_failures_are_not(tmp_path):
    more = {f"other_{number}": {"skipped": f"/data/other_{number}: no such folder"} for number in range(3)}
    write_pages(REPORT | {"tasks": REPORT["tasks"] | more}, tmp_path)
    page = (tmp_path / HTML).read_text()
    shown, folded = page.split("<details>")
    assert "no pcam in /data" in shown and "no such folder" not in shown
    assert "<summary>4 tasks whose data are not there" in folded and folded.count("no such folder") == 4
    write_pages(REPORT | {"tasks": {"mnist_probe": REPORT["tasks"]["mnist_probe"]}}, tmp_path)
    assert "Not run" not in (tmp_path / HTML).read_text()
