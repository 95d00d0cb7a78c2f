"""Tables line up, and say what a number is read beside."""

from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import TaskResult
from flava_ds.evaluation.table import percent, result_table, task_list


def test_small_shares_keep_two_digits():
    assert [percent(v) for v in (0.0, 0.0006, 0.0123, 1.0, None)] == [
        "0.0 %",
        "0.06 %",
        "1.2 %",
        "100.0 %",
        "",
    ]


def test_a_row_has_value_error_samples_and_published_numbers():
    scores = {
        "accuracy": Score(0.9012, 10_000, 0.00298),
        "loss": Score(1.25, 50, 0.5, "nats", higher_is_better=False),
    }
    header, accuracy, loss = result_table({"cifar10_probe": TaskResult(scores, 1.0, {})}).splitlines()
    assert accuracy.split("  ")[0] == "cifar10_probe" and "90.12 % ± 0.30" in accuracy
    assert "10,000" in accuracy and accuracy.endswith("FLAVA 92.87 %, CLIP-400M 94.93 %")
    assert "1.2500 ± 0.5000" in loss and loss.endswith("50")
    assert header.index("samples") == accuracy.index("10,000") == loss.rindex("50")


def test_published_numbers_are_of_the_same_samples_or_say_otherwise():
    score = {"accuracy": Score(0.5, 20, 0.1)}
    facts = {"departures": ["split val", "at most 20 samples a split"]}
    row = result_table({"dtd_probe": TaskResult(score, 1.0, facts)}).splitlines()[1]
    assert row.endswith("of other samples: split val, at most 20 samples a split here") and "FLAVA" not in row
    found = {"vqa_accuracy": Score(0.5, 20, 0.1)}
    row = result_table({"vqav2": TaskResult(found, 1.0, {"departures": []})}, "unit").splitlines()[1]
    assert "UniT (test-dev) 67.00 %" in row and "FLAVA (test-dev) 72.49 %" in row
    correlation = {"pearson": Score(0.5, 20, 0.1, "correlation")}
    row = result_table({"glue_stsb": TaskResult(correlation, 1.0, {})}).splitlines()[1]
    assert "0.5000 ± 0.1000" in row and "FLAVA 0.8567" in row


def test_the_samples_of_a_result_are_named_below_it():
    facts = {"folder": "/data/mine", "split": "test", "samples": 1234}
    found = result_table({"own_zero_shot": TaskResult({"accuracy": Score(0.5, 1234, 0.1)}, 1.0, facts)})
    assert found.splitlines()[-1] == "own_zero_shot: 1,234 of split test in /data/mine"


def test_the_list_has_every_task_and_where_its_data_comes_from():
    text = task_list(tasks())
    for name, task in tasks().items():
        assert f"\n{name} " in text and task.data.origin in text and task.data.licence in text
        assert all(need.__name__ in text for need in task.needs)
