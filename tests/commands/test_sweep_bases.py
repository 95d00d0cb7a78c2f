"""What a sweep's runs were trained with is compared with what its base says now."""

import json
import sys

import pytest

from commands.test_sweep import options_of
from flava_ds import cli
from flava_ds.commands import sweep_jobs, sweep_runs
from flava_ds.config import save
from flava_ds.errors import ConfigError
from flava_ds.ranks.launch import Launch


def based(tmp_path, **changed):
    """Writes a SPEC whose base is a file of ours with these keys; returns its words."""
    base = {"base": "flava_debug", "training": {"total_steps": 16}, **changed}
    (tmp_path / "mine.json").write_text(json.dumps(base))
    (tmp_path / "two.json").write_text(json.dumps({"base": "mine.json", "seeds": [0, 1]}))
    return ["sweep", str(tmp_path / "two.json"), "--folder", str(tmp_path / "sweep"), "--yes"]


def known(words):
    sweep, _ = sweep_runs.planned(options_of(*words[1:]))
    configs = {name: sweep_runs.config_of(sweep, run) for name, run in sweep.runs.items()}
    return sweep_runs.with_facts(sweep, configs)


def narrow():
    return {part: {"hidden_size": 32} for part in ("image", "text", "multimodal")}


def test_a_base_that_was_changed_behind_finished_runs_is_refused(tmp_path, capsys):
    sweep = known(based(tmp_path))
    first = next(iter(sweep.runs))
    sweep.path_of(first).mkdir(parents=True)
    save(sweep_runs.config_of(sweep, sweep.runs[first]), sweep.path_of(first) / "config.json")
    sweep.save()
    (sweep.path_of(first) / "log.jsonl").write_text(json.dumps({"step": 15, "loss/mlm": 2.5}))
    sweep.end(first, 0)
    # where a run lies and what it keeps may change
    assert cli.main([*based(tmp_path, checkpoint={"keep_last": 7}), "--dry-run"]) == 0
    assert cli.main(based(tmp_path, optimizer={"lr": 0.25})) == 2
    error = capsys.readouterr().err
    assert f"{first}: was trained with other settings, optimizer.lr" in error and "-> 0.25; " in error, error
    assert cli.main([*based(tmp_path, optimizer={"lr": 0.25}), "--dry-run", "--other-commit"]) == 0
    assert "was trained with other settings, optimizer.lr" in capsys.readouterr().err
    # a job that was submitted before, too; what the first run had no field for was its default then
    begin, other = ["sweep", str(sweep.folder), "--begin", list(sweep.runs)[1]], ["--other-commit"]
    assert cli.main(begin) == 2 and "optimizer.lr" in capsys.readouterr().err
    assert cli.main([*begin, *other]) == 0 and "flava_ds" not in capsys.readouterr().out
    based(tmp_path, data={"num_workers": 3})
    saved = json.loads((sweep.path_of(first) / "config.json").read_text())
    del saved["training"]["clip_each_parameter"]
    (sweep.path_of(first) / "config.json").write_text(json.dumps(saved))
    assert cli.main(begin) == 0


def test_a_base_that_is_changed_while_its_sweep_runs_ends_it(tmp_path, monkeypatch):
    sweep = known(based(tmp_path))
    sweep.save()
    begun = []

    def command_of(sweep, name, options):
        """A first run that trains and meanwhile somebody edits the base."""
        begun.append(name)
        sweep.path_of(name).mkdir(parents=True)
        save(sweep_runs.config_of(sweep, sweep.runs[name]), sweep.path_of(name) / "config.json")
        line = {"step": 15, "loss/mmm_text": 2.5, "seconds_per_step": 1.0, "samples_per_second": 8.0}
        (sweep.path_of(name) / "log.jsonl").write_text(json.dumps(line))
        based(tmp_path, optimizer={"lr": 0.25})
        return Launch(arguments=[sys.executable, "-c", "pass"])

    monkeypatch.setattr(sweep_jobs, "command_of", command_of)
    options = options_of(str(sweep.folder))
    with pytest.raises(ConfigError, match="trained with other settings, optimizer.lr .* -> 0.25; runs that"):
        sweep_jobs.run_all(sweep, None, list(sweep.runs), options)
    assert begun == [next(iter(sweep.runs))] and sweep.state(begun[0])["state"] == "finished"


def test_what_is_known_of_a_run_follows_a_base_that_was_mended(tmp_path, capsys):
    """A failed run's, which is tried again; a finished run's stays."""
    sweep = known(based(tmp_path))
    sweep.save()
    first, second = sweep.runs
    sweep.end(first, 3)
    sweep.path_of(second).mkdir()
    line = {"step": 0, "loss/mlm": 2.5, "seconds_per_step": 3600.0, "flops_per_second": 1.0}
    (sweep.path_of(second) / "log.jsonl").write_text(json.dumps(line))
    sweep.end(second, 0)
    assert cli.main([*based(tmp_path), "--dry-run"]) == 0  # what is to come takes as long, as it is as large
    assert "60 minutes on this machine at the rate of the finished runs" in capsys.readouterr().out
    sweep = known(based(tmp_path, model=narrow()))
    assert [sweep.facts[name]["parameters"] for name in (first, second)] == [539_555, 1_124_675]
