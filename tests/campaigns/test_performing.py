"""One run of a campaign: trained, measured and written, or measured alone."""

import dataclasses
import json

import numpy as np
import pytest

from flava_ds.campaigns import performing
from flava_ds.campaigns.ablation import ONLY, RAW_PIXELS, TABLE
from flava_ds.campaigns.campaign import code, plan, read_results, unfinished
from flava_ds.campaigns.measure import MEASURES
from flava_ds.campaigns.performing import perform


def test_a_run_from_nothing_to_its_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TABLE.works, "tiny", 2)
    monkeypatch.setitem(ONLY, "clip", ("vision",))
    (run,) = (
        dataclasses.replace(run, runs=tmp_path / "runs")
        for run in plan(TABLE, ["clip"], range(1), "tiny", tmp_path)
    )
    gone = run.folder / "measured" / "joint" / "vision.json"  # of a training whose folder was deleted
    gone.parent.mkdir(parents=True)
    stamp = [run.settings, run.added, code()["sources"]]
    gone.write_text(json.dumps({"stamp": stamp, "part": {"metrics": {}, "counts": {}}}))
    perform(run)
    (result,) = read_results(run.file.parent)["clip"]
    assert result["steps"] == {"joint": 2} and result["settings"] == run.settings
    assert 0 < result["metrics"]["vision/group"]["value"] < 1
    assert not list(unfinished([run])) and not run.folder.exists()


def test_what_was_trained_with_other_settings_is_begun_anew(tmp_path, capsys):
    (run,) = plan(TABLE, ["clip"], range(1), "tiny", tmp_path)
    run = dataclasses.replace(run, runs=tmp_path / "runs")
    performing._begin_anew_if_other(run)
    (run.folder / "joint").mkdir()
    performing._begin_anew_if_other(run)
    assert (run.folder / "joint").exists() and not capsys.readouterr().out
    (run.folder / "settings.txt").write_text("of before")
    performing._begin_anew_if_other(run)
    assert not (run.folder / "joint").exists() and "begun anew" in capsys.readouterr().out
    assert (run.folder / "settings.txt").read_text() == run.settings


def test_a_row_without_training_is_measured_and_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ONLY, RAW_PIXELS, ())  # measuring it in earnest takes minutes
    (run,) = plan(TABLE, [RAW_PIXELS], range(3), "tiny", tmp_path)
    perform(run)
    (result,) = read_results(run.file.parent)[RAW_PIXELS]
    assert (result["steps"], result["training_flops"], result["metrics"]) == ({}, 0, {})
    assert not list(unfinished([run]))


def test_a_run_that_is_stopped_while_it_is_measured_goes_on_after_the_last_domain(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ONLY, RAW_PIXELS, ("one", "two"))
    monkeypatch.setattr(performing, "_opened", lambda run, path: (None, None))
    (run,) = plan(TABLE, [RAW_PIXELS], range(3), "tiny", tmp_path)
    run = dataclasses.replace(run, runs=tmp_path / "runs")
    asked = []

    def hits(name):
        def found(model, inputs):
            asked.append(name)
            if name == "two" and asked.count("two") == 1:
                raise KeyboardInterrupt
            return {f"{name}/number": ("items", np.array([0, 0, 1]), np.array([1.0, 0.0, 1.0]))}

        return found

    for name in ("one", "two"):
        monkeypatch.setitem(MEASURES, name, hits(name))
    with pytest.raises(KeyboardInterrupt):
        perform(run)
    assert not run.file.exists() and not list(run.file.parent.glob("*.json"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("measuring")]
    assert said == [f"measuring {RAW_PIXELS}: {own} of 2" for own in ("one, 1", "two, 2")]
    perform(run)
    (result,) = read_results(run.file.parent)[RAW_PIXELS]
    assert asked == ["one", "two", "two"] and not run.folder.exists()
    assert {name: own["sums"] for name, own in result["metrics"].items()} == {
        "one/number": [1, 1],
        "two/number": [1, 1],
    }
    assert result["counts"] == {"items": [2, 1]}
