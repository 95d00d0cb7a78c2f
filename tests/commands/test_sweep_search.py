"""`flava-ds sweep` with a search by Optuna: what it is told, and what it asks for."""

import json

import pytest

from commands.test_sweep import options_of
from flava_ds import cli
from flava_ds.commands import sweep_jobs, sweep_runs, sweep_search
from flava_ds.errors import ConfigError, UserError
from flava_ds.scaling.spec import Run, parse
from flava_ds.scaling.sweep import Sweep


@pytest.mark.parametrize("metric", ["loss/global_contrastive", "accuracy/itm"])
def test_optuna_goes_to_where_the_metric_is_better(tmp_path, metric):
    pytest.importorskip("optuna")
    data = {"base": "flava_debug", "metric": metric, "search": {"by": "optuna", "runs": 16, "fields": {
        "optimizer.lr": {"from": 1e-3, "to": 1e-1}}}}  # fmt: skip
    spec = parse(data, "s", "s")
    sweep = Sweep(tmp_path, "flava_debug", metric, "c", {})
    (tmp_path / "states").mkdir()
    for _ in range(16):
        sweep, name = sweep_search.asked(sweep, spec)
        state = {
            "state": "finished",
            "attempts": 1,
            "results": {metric: sweep.runs[name].overrides["optimizer.lr"]},
        }
        (tmp_path / "states" / f"{name}.json").write_text(json.dumps(state))
    late = [run.overrides["optimizer.lr"] for run in sweep.runs.values()][10:]
    assert (sum(late) / 6 > 0.06) == metric.startswith("accuracy/"), late


def test_optuna_keeps_away_from_where_runs_fail_or_diverge(tmp_path):
    pytest.importorskip("optuna")
    data = {"base": "flava_debug", "search": {"by": "optuna", "runs": 18, "fields": {
        "optimizer.lr": {"from": 1e-3, "to": 1e-1}}}}  # fmt: skip
    spec = parse(data, "s", "s")
    sweep = Sweep(tmp_path, "flava_debug", spec.metric, "c", {})
    (tmp_path / "states").mkdir()
    for number in range(18):
        sweep, name = sweep_search.asked(sweep, spec)
        ended = {"state": "finished", "results": {spec.metric: 2.0}}
        if sweep.runs[name].overrides["optimizer.lr"] > 0.03:
            ended = {"state": "failed"} if number % 2 else {"state": "finished", "results": {}}
            ended["reason"] = f"{spec.metric} is not finite from step 5 on"
        (tmp_path / "states" / f"{name}.json").write_text(json.dumps(ended | {"attempts": 1}))
    rates = [run.overrides["optimizer.lr"] for run in sweep.runs.values()]
    assert max(rates[:10]) > 0.03 and sum(rates[12:]) / 6 < 0.03, rates


def test_a_search_by_what_runs_do_not_log_ends_at_once(tmp_path):
    pytest.importorskip("optuna")
    data = {"base": "flava_debug", "metric": "loss/mlm", "search": {"by": "optuna", "runs": 2, "fields": {
        "optimizer.lr": {"from": 1e-3, "to": 1e-1}}}}  # fmt: skip
    spec = parse(data, "s", "s")
    sweep, name = sweep_search.asked(Sweep(tmp_path, "flava_debug", "loss/mlm", "c", {}), spec)
    (tmp_path / "states").mkdir()
    state = {"state": "finished", "attempts": 1, "results": {"steps": 2}}
    (tmp_path / "states" / f"{name}.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=f"{name}: has finished without loss/mlm in its log"):
        sweep_search.asked(sweep, spec)


def test_optuna_leaves_out_what_cannot_be_and_ends_when_all_is_asked_for(tmp_path, capsys):
    pytest.importorskip("optuna")
    searches = []
    for seed in (0, 1):
        fields = {"model.image.hidden_size": [64, 65, 66, 67, 128, 192]}
        search = {"by": "optuna", "runs": 6, "seed": seed, "fields": fields}
        data = {"base": "flava_debug", "metric": "loss/mim", "search": search}
        spec, sweep = parse(data, "s", "s"), Sweep(tmp_path / str(seed), "flava_debug", "loss/mim", "c", {})
        while (grown := sweep_search.asked(sweep, spec)) is not None:
            sweep, name = grown
            (tmp_path / str(seed) / "states").mkdir(exist_ok=True)
            state = {"state": "finished", "attempts": 1, "results": {spec.metric: 1.0}}
            (tmp_path / str(seed) / "states" / f"{name}.json").write_text(json.dumps(state))
        searches.append([run.overrides["model.image.hidden_size"] for run in sweep.runs.values()])
    assert all(sorted(found) == [64, 66, 128, 192] for found in searches), searches
    assert (
        "left out: 0, run of model.image.hidden_size 65: model.image: hidden_size" in capsys.readouterr().out
    )


def test_neighbouring_seeds_are_other_searches(tmp_path):
    pytest.importorskip("optuna")
    asked = []
    for seed in (0, 1):
        data = {"base": "flava_debug", "search": {"by": "optuna", "runs": 4, "seed": seed, "fields": {
            "optimizer.lr": {"from": 1e-5, "to": 1e-1}}}}  # fmt: skip
        spec, sweep = parse(data, "s", "s"), Sweep(tmp_path / str(seed), "flava_debug", "loss/mim", "c", {})
        for _ in range(4):
            sweep, _ = sweep_search.asked(sweep, spec)
        asked.append(set(sweep.runs))
    assert not asked[0] & asked[1]


def test_optuna_asks_by_what_has_finished(tmp_path, capsys, monkeypatch):
    pytest.importorskip("optuna")
    data = {"base": "flava_debug", "search": {"by": "optuna", "runs": 12, "fields": {
        "optimizer.lr": {"from": 1e-5, "to": 1e-1, "log": True}}}}  # fmt: skip
    spec = parse(data, "s", "s")
    sweep = Sweep(tmp_path, "flava_debug", spec.metric, "c", {})
    for _ in range(12):
        sweep, name = sweep_search.asked(sweep, spec)
        loss = abs(sweep.runs[name].overrides["optimizer.lr"] - 0.05)
        state = {"state": "finished", "attempts": 1, "results": {spec.metric: loss}}
        (tmp_path / "states").mkdir(exist_ok=True)
        (tmp_path / "states" / f"{name}.json").write_text(json.dumps(state))
    found = [run.overrides["optimizer.lr"] for run in sweep.runs.values()]
    assert len(sweep.runs) == 12 and Sweep.open(tmp_path).runs == sweep.runs
    assert sum(found[10:]) / 2 > sorted(found[:10])[5], "it goes to where the loss was low"
    assert next(iter(sweep.facts.values()))["parameters"] == 1_124_675
    path = tmp_path / "asked.yaml"
    path.write_text(json.dumps(data | {"name": "asked"}))
    assert cli.main(["sweep", str(path), "--folder", str(tmp_path / "new"), "--dry-run"]) == 0
    assert ": 12 runs, 12 of them now" in (told := capsys.readouterr().out) and "12 runs: " in told, told
    words = ["--folder", str(tmp_path / "new"), "--dry-run", "--gpu", "h100", "--most", "2"]
    assert cli.main(["sweep", str(path), *words]) == 0
    assert "2 runs: " in (told := capsys.readouterr().out) and "GPU-hours" in told, told
    assert not (tmp_path / "new").exists()
    assert cli.main(["sweep", str(path), "--folder", str(tmp_path / "new"), "--slurm", "--yes"]) == 2
    assert "asks for runs one by one" in capsys.readouterr().err
    begun: list[str] = []
    monkeypatch.setattr(sweep_jobs, "run_one", lambda sweep, name, where, _: begun.append(where) or 0)
    empty = Sweep(tmp_path / "new", "flava_debug", spec.metric, "c", {})
    sweep_jobs.run_all(empty, spec, [], options_of("new", "--most", "2"))
    assert begun == ["run 1 of 12", "run 2 of 12"]
    grown = Sweep.open(tmp_path / "new")  # whose second run was stopped
    sweep_jobs.run_all(grown, spec, list(grown.runs)[1:], options_of("new", "--most", "2"))
    assert begun[2:] == ["run 2 of 12", "run 3 of 12"]


@pytest.mark.parametrize(
    ("search", "fixed", "others"),
    [
        ({"optimizer.lr": {"from": 1e-4, "to": 1e-1}}, {}, False),  # wider
        ({"optimizer.lr": {"from": 1e-3, "to": 2e-3}}, {}, True),
        ({"optimizer.lr": ["a", "b"]}, {}, True),
        ({"optimizer.lr": {"from": 0, "to": 2, "integer": True}}, {}, True),
        ({"optimizer.lr": {"from": 1e-4, "to": 1e-1}, "seed": [0, 1]}, {}, True),
        ({"optimizer.lr": {"from": 1e-4, "to": 1e-1}}, {"training.total_steps": 9}, True),
    ],
)
def test_a_search_by_optuna_that_is_another_one_now_is_refused(tmp_path, search, fixed, others):
    asked = Run({"optimizer.lr": 0.01}, {"optimizer.lr": 0.01})
    Sweep(tmp_path / "sweep", "flava_debug", "loss/mlm", sweep_runs.commit_now(), {asked.name: asked}).save()
    path = tmp_path / "asked.json"
    by = {"by": "optuna", "runs": 2, "fields": search}
    path.write_text(json.dumps({"base": "flava_debug", "fixed": fixed, "search": by}))
    options = options_of(str(path), "--folder", str(tmp_path / "sweep"))
    if others:
        with pytest.raises(ConfigError, match="holds another sweep, with 1 run that .*asked.json does not"):
            sweep_runs.planned(options)
    else:
        assert sweep_runs.planned(options)[0].runs == {asked.name: asked}
