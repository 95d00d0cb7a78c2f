"""One run of a campaign: trained, measured and written, or measured alone."""

import dataclasses

from flava_ds.campaigns.ablation import ONLY, RAW_PIXELS, TABLE
from flava_ds.campaigns.campaign import plan, read_results, unfinished
from flava_ds.campaigns.performing import perform


def test_a_run_from_nothing_to_its_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TABLE.works, "tiny", 2)
    monkeypatch.setitem(ONLY, "clip", ("vision",))
    (run,) = (
        dataclasses.replace(run, runs=tmp_path / "runs") for run in plan(TABLE, ["clip"], 1, "tiny", tmp_path)
    )
    perform(run)
    (result,) = read_results(run.file.parent)["clip"]
    assert result["steps"] == {"joint": 2} and result["settings"] == run.settings
    assert 0 < result["metrics"]["vision/group"]["value"] < 1
    assert not list(unfinished([run])) and not run.folder.exists()


def test_a_row_without_training_is_measured_and_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ONLY, RAW_PIXELS, ())  # measuring it in earnest takes minutes
    (run,) = plan(TABLE, [RAW_PIXELS], 3, "tiny", tmp_path)
    perform(run)
    (result,) = read_results(run.file.parent)[RAW_PIXELS]
    assert (result["steps"], result["training_flops"], result["metrics"]) == ({}, 0, {})
    assert not list(unfinished([run]))
