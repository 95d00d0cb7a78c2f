"""A run along its way."""

import dataclasses
import json

from flava_ds.campaigns import course
from flava_ds.campaigns.campaign import plan
from flava_ds.campaigns.comparison import TABLE


def test_losses_are_means_over_equal_shares_of_the_flops(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "MEANS", 2)
    # Two steps of 1 FLOP each, then a line over two steps of 3 each: the halves end after 4 and 8 FLOPs.
    lines = [
        {"step": step, "seconds_per_step": 1.0, "flops_per_second": float(rate), **losses}
        for step, rate, losses in [
            (0, 1, {"loss/a": 4.0}),
            (1, 1, {"loss/a": 2.0, "loss/b": 1.0}),
            (3, 3, {"loss/a": 0.5, "loss/c": float("nan")}),
        ]
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    assert course.losses_of(tmp_path) == {"a": [3.0, 0.5], "b": [1.0, None], "c": [None, None]}


def test_a_run_keeps_the_checkpoints_that_are_measured_on_the_way(tmp_path):
    [run] = plan(TABLE, ["demo_clip"], range(1), "tiny", tmp_path)
    [stage] = run.sequence.stages
    steps, kept = stage.config.training.total_steps, stage.config.checkpoint
    assert kept.every_steps == kept.keep_every == steps // 4 > 0
    names = [folder.name for folder in course.checkpoints_on_the_way(stage.config)]
    assert names == [f"step_{number * kept.keep_every:08d}" for number in (1, 2, 3)]
    short = dataclasses.replace(run, table=dataclasses.replace(TABLE, along=()))
    assert short.sequence.stages[0].config.checkpoint.keep_every == 0
    assert short.settings == run.settings
