"""A run's numbers from its log, against sums by hand."""

import json

import pytest

from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve
from flava_ds.scaling.results import TOTALS, check_metric, course, results
from flava_ds.watching.run_log import read_log


def written(folder):
    lines = [{"hardware": {"ranks": 2}}]
    for step, loss, passes in ((4, 5.0, 0.5), (9, 3.0, 1.0), (19, 2.0, 4.0)):
        line = {"step": step, "loss/mim": loss, "seconds_per_step": 0.5, "samples_per_second": 16.0}
        line |= {"flops_per_second": 100.0, "source_share/a": 0.75, "epoch/a": passes, "source_share/b": 0.25}
        lines.append(line | {"epoch/b": 0.5})
    lines[-1]["evaluation/gallery/nats"] = 1.25
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def test_what_a_run_used_and_reached(tmp_path):
    written(tmp_path)
    found = results(read_log(tmp_path / "log.jsonl"))
    assert found["steps"] == 20 and found["samples"] == 160
    assert found["flops"] == pytest.approx(20 * 0.5 * 100)
    assert found["gpu_hours"] == pytest.approx(20 * 0.5 * 2 / 3600)
    assert found["unique_samples"] == pytest.approx(160 * (0.75 / 4 + 0.25))
    assert set(TOTALS) == {name for name in found if "/" not in name}
    assert found["loss/mim"] == 2.0 and found["evaluation/gallery/nats"] == 1.25


def test_numbers_of_sources_that_differ_in_batch_and_of_one_that_came_last_long_ago(tmp_path):
    written(tmp_path)
    header, *lines = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    sources = {"a": {"global_batch_size": 10}, "b": {"global_batch_size": None}}
    header["config"] = {"training": {"global_batch_size": 34}, "data": {"sources": sources}}
    for line, rare in zip(lines, (8.0, 6.0, None), strict=True):
        line |= {} if rare is None else {"loss/rare": rare}
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, [header, *lines])))
    found = results(read_log(tmp_path / "log.jsonl"))
    # 15 steps of 10 samples, in four passes, and 5 of 34: 150 of 320 samples are of a
    assert found["unique_samples"] == pytest.approx(160 * (150 / 320 / 4 + 170 / 320))
    assert found["loss/rare"] == 6.0


def test_what_is_not_finite_at_the_end_was_not_reached(tmp_path):
    """JSON has no NaN: the log says null."""
    written(tmp_path)
    header, *lines = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    for line, mlm, itm, probe in zip(
        lines, (8.0, 6.0, None), (None, 2.0, 1.0), (0.5, None, None), strict=True
    ):
        line |= {"loss/mlm": mlm, "loss/itm": itm, "evaluation/probe/top1": probe}
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, [header, *lines])))
    found = results(read_log(tmp_path / "log.jsonl"))
    assert not {"loss/mlm", "evaluation/probe/top1"} & found.keys()
    assert (found["loss/mim"], found["loss/itm"]) == (2.0, 1.0)


def test_gpu_hours_are_of_the_ranks_that_a_run_went_on_with(tmp_path):
    written(tmp_path)
    header, *lines = (tmp_path / "log.jsonl").read_text().splitlines()
    resumed = [{"step": first, "hardware": {"ranks": ranks}} for first, ranks in ((15, 8), (5, 4), (10, 1))]
    header = json.dumps(json.loads(header) | {"resumed": resumed})
    (tmp_path / "log.jsonl").write_text("\n".join([header, *lines]))
    # step 15 was taken back: the start after it began at 5
    expected = 0.5 * (5 * 2 + 5 * 4 + 10 * 1) / 3600
    assert results(read_log(tmp_path / "log.jsonl"))["gpu_hours"] == pytest.approx(expected)


def test_a_number_along_what_was_used(tmp_path):
    written(tmp_path)
    log = read_log(tmp_path / "log.jsonl")
    assert course(log).along(log, "loss/mim", "samples") == ([40.0, 80.0, 160.0], [5.0, 3.0, 2.0])


def test_a_metric_is_one_that_results_have(tmp_path):
    for name in (*TOTALS, "loss/mmm_text", "accuracy/itm"):
        check_metric(name, resolve("flava_debug", []))
    with pytest.raises(ConfigError, match="metric is 'loss/mmm_txt', .*did you mean 'loss/mmm_text'"):
        check_metric("loss/mmm_txt", resolve("flava_debug", []))


def test_no_log_has_no_results(tmp_path):
    assert results(read_log(tmp_path / "log.jsonl")) == {}
