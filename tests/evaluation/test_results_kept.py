"""A run keeps what tasks found: of every checkpoint and set of samples, and from processes at once."""

import json
import os
import time

import pytest

from flava_ds.errors import DataError
from flava_ds.evaluation import results
from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.results import OTHERS, RESULTS, read_results, write_results
from flava_ds.evaluation.runner import TaskResult
from flava_ds.storage.atomic import hold, write_json


def test_results_are_kept_by_task_with_what_others_published(tmp_path):
    facts = {"split": "test", "fine_tuning": {"betas": (0.9, 0.999)}}
    result = TaskResult({"accuracy": Score(0.9, 100, 0.03)}, 1.234, facts).to_json("cifar10_probe")
    assert result["scores"]["accuracy"]["published"][0] == {
        "of": "FLAVA",
        "value": pytest.approx(0.9287),
        "source": "FLAVA, Table C.1",
    }
    assert result["split"] == "test" and result["seconds"] == 1.23
    assert read_results(tmp_path) == {}
    write_results(tmp_path, {"cifar10_probe": result})
    write_results(tmp_path, {"other": {"scores": {}}})
    write_results(tmp_path, {"cifar10_probe": result | {"folder": "/moved"}})
    expected = json.loads(json.dumps(result | {"folder": "/moved"}))
    assert read_results(tmp_path) == {"cifar10_probe": [expected], "other": [{"scores": {}}]}
    assert json.loads((tmp_path / RESULTS).read_text()) == {
        "cifar10_probe": expected,
        "other": {"scores": {}},
    }
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


@pytest.mark.parametrize("others", [3, ["x"], {"b": 1}])
def test_a_damaged_list_of_others_is_named(tmp_path, others):
    write_json(tmp_path / RESULTS, {"a": {OTHERS: others}})
    with pytest.raises(DataError, match="evaluations.json: not readable"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"task": 3}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(DataError, match="evaluations.json: not readable"):
        read_results(tmp_path)


def test_results_of_other_checkpoints_and_samples_stay_beside_the_latest(tmp_path):
    facts = {"weights": "a", "step": 10, "fingerprint": "x"}
    for changed in ({}, {"weights": "b", "step": 20}, {"fingerprint": "y"}, {"seconds": 1}):
        write_results(tmp_path, {"own_zero_shot": facts | changed})
    expected = [facts | own for own in ({"seconds": 1}, {"fingerprint": "y"}, {"weights": "b", "step": 20})]
    assert read_results(tmp_path)["own_zero_shot"] == expected
    written = json.loads((tmp_path / RESULTS).read_text())["own_zero_shot"]
    assert written == expected[0] | {OTHERS: expected[1:]}


def test_a_fine_tuning_that_had_finished_keeps_how_long_it_took(tmp_path):
    def found(value, seconds, **facts):
        facts |= {"device": "cuda:0" if seconds > 100 else "cpu"}
        return {
            "mine": TaskResult({"accuracy": Score(value, 100, 0.03, (0.8, 0.9))}, seconds, facts).to_json(
                "mine"
            )
        }

    trained, probed = {"fine_tuning": {"lr": 1e-5}}, {"fingerprint": "x"}
    for value, seconds, facts in [
        (0.9, 3600, trained),
        (0.9, 0.1, trained | {"read_again": True}),
        (0.9, 50, probed),
        (0.9, 2, probed),
    ]:
        write_results(tmp_path, found(value, seconds, **facts))
    probe, tuned = read_results(tmp_path)["mine"]
    assert (probe["seconds"], probe["device"]) == (2, "cpu")
    assert (tuned["seconds"], tuned["device"]) == (3600, "cuda:0")
    assert "read_again" not in tuned
    write_results(tmp_path, found(0.9, 5, **trained))  # trained again, to the same end
    assert read_results(tmp_path)["mine"][0]["seconds"] == 5


def test_processes_that_write_at_once_lose_nothing(tmp_path, monkeypatch):
    """As jobs do that evaluate a checkpoint each."""
    children, write = [], results.write_json
    monkeypatch.setattr(results, "write_json", lambda *what: time.sleep(0.02) or write(*what))
    for number in range(8):
        if not (child := os.fork()):
            status = 1
            try:
                for task in "abc":
                    write_results(tmp_path, {f"{task}{number % 2}": {"step": number}})
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    found = read_results(tmp_path)
    assert {task: sorted(own["step"] for own in all_of) for task, all_of in found.items()} == {
        f"{task}{odd}": [odd, 2 + odd, 4 + odd, 6 + odd] for task in "abc" for odd in (0, 1)
    }
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


def test_one_that_never_lets_go_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PATIENCE_S", 0.2)
    words = "another process is writing there: '.*/evaluations.json'"
    with hold(tmp_path / f".{RESULTS}.lock"), pytest.raises(BlockingIOError, match=words):
        write_results(tmp_path, {"a": {}})
