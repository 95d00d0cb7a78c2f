"""A sweep's folder: states and their reasons, two sweeps in one folder, tables."""

import csv
import dataclasses
import json

import pytest

from flava_ds.commands.sweep import show
from flava_ds.errors import ConfigError, UserError
from flava_ds.ranks.endings import last_words, output_lines
from flava_ds.report.sweep_page import best_of, status_rows, write_sweep_page
from flava_ds.scaling.spec import Run
from flava_ds.scaling.sweep import Sweep, merged, write_tables
from flava_ds.watching.run_log import LOWER


def sweep_in(folder, *values, base="demo", commit="a" * 40):
    runs = [Run({"x": value}, {"x": value}, ("p",), value == 2) for value in values]
    return Sweep(folder, base, "loss/mim", commit, {run.name: run for run in runs})


def test_states_and_reasons(tmp_path):
    sweep = sweep_in(tmp_path, 1, 2)
    sweep.save()
    sweep = Sweep.open(tmp_path)
    assert sweep.runs == sweep_in(tmp_path, 1, 2).runs
    first, second = sweep.runs
    assert sweep.state(first)["state"] == "planned"
    sweep.begin(first)
    assert sweep.state(first) | {"since": ""} == {
        "state": "running", "attempts": 1, "log_bytes": 0, "since": ""
    }  # fmt: skip
    sweep.log_of(first).parent.mkdir()
    sweep.log_of(first).write_text("step 1\nerror: out of disk\nTerminated\n")
    sweep.end(first, 2)
    assert sweep.state(first)["state"] == "failed" and sweep.state(first)["reason"] == "out of disk"
    sweep.begin(first)
    assert sweep.end(first, 143)["state"] == "planned" and sweep.state(first)["attempts"] == 2
    assert sweep.end(second, 0) == {"state": "failed", "reason": "it ended well, but its log has no steps"}
    for status, reason in (
        (3, "exit status 3"),
        (128 + 9, "killed by SIGKILL"),
        (256 - 9, "killed by SIGKILL"),
        (255, "exit status 255"),
    ):
        assert sweep.end(second, status) == {"state": "failed", "reason": reason}
    line = {"step": 0, "loss/mim": 2.5, "seconds_per_step": 1.0, "samples_per_second": 8.0}
    sweep.path_of(second).mkdir()
    (sweep.path_of(second) / "log.jsonl").write_text(json.dumps(line))
    (sweep.path_of(second) / "config.json").write_text('{"training": {"total_steps": 2}}')
    assert sweep.end(second, 0) == {
        "state": "planned",
        "reason": "its launcher ended well after 1 of 2 steps; the same command goes on with it",
    }
    (sweep.path_of(second) / "config.json").write_text('{"training": {"total_steps": 1}}')
    assert sweep.end(second, 0)["state"] == "finished"

    written = write_tables(sweep, parquet=True)
    rows = list(csv.DictReader(written[0].open()))
    assert [row["state"] for row in rows] == ["planned", "finished"]
    assert (rows[1]["loss/mim"], rows[1]["axis/x"], rows[1]["held_out"]) == ("2.5", "2", "True")
    from pyarrow import parquet

    assert parquet.read_table(written[1]).column("loss/mim").to_pylist() == [None, 2.5]


def test_a_run_that_diverged_says_so_and_is_not_the_best(tmp_path, capsys):
    sweep = sweep_in(tmp_path, 1, 2, 3)
    for name, losses in zip(sweep.runs, ([3.0, 2.0], [1.0, None], []), strict=True):
        lines = [{"step": step, "lr": 1.0, "loss/mim": loss} for step, loss in enumerate(losses)]
        sweep.path_of(name).mkdir()
        log = "\n".join(map(json.dumps, lines or [{"step": 0, "lr": 1.0}]))
        (sweep.path_of(name) / "log.jsonl").write_text(log)
        sweep.end(name, 0)
    names = list(sweep.runs)
    assert sweep.state(names[1])["reason"] == "loss/mim is not finite from step 1 on"
    assert best_of(sweep, sweep.rows())["run"] == names[0]
    show(sweep, False)
    said = capsys.readouterr().out
    assert f"without loss/mim in their logs: {names[2]}\n" in said and "not finite from step 1 on" in said


@pytest.mark.parametrize(
    ("metric", "values", "lower", "best"),
    [
        ("loss/mim", (2.5, 1.5), "", 2),
        ("accuracy/itm", (0.75, 0.5), "", 1),
        ("evaluation/a/top1_accuracy", (0.75, 0.5), "evaluation/b/loss", 1),
        ("evaluation/b/loss", (0.75, 0.5), "evaluation/b/loss", 2),
    ],
)
def test_the_best_run_is_first_and_named_by_the_page(tmp_path, metric, values, lower, best):
    sweep = dataclasses.replace(sweep_in(tmp_path, 1, 2), metric=metric)
    for name, value in zip(sweep.runs, values, strict=True):
        line = {"step": 0, "loss/mim": 2.5, metric: value, "seconds_per_step": 1.0} | {LOWER: lower or None}
        sweep.path_of(name).mkdir()
        (sweep.path_of(name) / "log.jsonl").write_text(json.dumps(line))
        sweep.end(name, 0)
    name = list(sweep.runs)[best - 1]
    assert status_rows(sweep)[1][0] == name and best_of(sweep, sweep.rows())["run"] == name
    word = "highest" if sweep.higher_is_better() else "lowest"
    assert (
        f"The {word} {metric} is {values[best - 1]:.4g}, of run {name}."
        in write_sweep_page(sweep).read_text()
    )


def test_a_folder_may_grow_but_holds_one_sweep_of_one_commit(tmp_path):
    old = sweep_in(tmp_path, 1, 2)
    assert len(merged(old, sweep_in(tmp_path, 1, 2, 3), "s.yaml", False).runs) == 3
    for new, message in (
        (sweep_in(tmp_path, 1), "holds another sweep, with 1 run that s.yaml does not have"),
        (sweep_in(tmp_path, 1, 2, base="clip"), "holds another sweep, of demo"),
        (sweep_in(tmp_path, 1, 2, commit="b" * 40), "was begun at commit aaaaaaaaaa, this is bbbbbbbbbb"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            merged(old, new, "s.yaml", False)
        assert "\n" not in str(caught.value)
    other = sweep_in(tmp_path, 1, 2, commit="b" * 40)
    assert merged(old, other, "s.yaml", True) == other
    copied = [
        sweep_in(tmp_path, 1, 2, base=base) for base in ("/a/mine.yaml", "/b/mine.yaml", "/b/your.yaml")
    ]
    assert merged(*copied[:2], "s.yaml", False) is copied[1]
    with pytest.raises(ConfigError, match="holds another sweep, of /b/mine.yaml"):
        merged(*copied[1:], "s.yaml", False)
    files = [tmp_path / folder / "mine.yaml" for folder in "ab"]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(str(number))
    two = [sweep_in(tmp_path, 1, 2, base=str(file)) for file in files]
    with pytest.raises(ConfigError, match="holds another sweep"):
        merged(*two, "s.yaml", False)
    files[0].write_text("1")
    assert merged(*two, "s.yaml", False) is two[1]


def manifest(**changes) -> str:
    """A manifest of one run, changed."""
    run = Run({"x": 1}, {"x": 1})
    own = {"overrides": {"x": 1}, "point": {"x": 1}, "parts": [], "held_out": False, "facts": {}}
    said = {"base": "demo", "metric": "loss/mim", "commit": "c", "plugins": [], "runs": {run.name: own}}
    return json.dumps(said | changes)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"runs": {"a": {}}}',
        manifest(metric=5),
        manifest().replace('"overrides": {"x": 1}', '"overrides": {"x": 2}'),
        manifest().replace('"point": {"x": 1}', '"point": null'),
    ],
)
def test_a_broken_manifest_is_one_line(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json: cannot be read") as caught:
        Sweep.open(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "{}",
        '{"state": "done", "attempts": 1}',
        '{"state": "failed"}',
        '{"state": "finished", "attempts": 1, "results": {"flops": "a"}}',
    ],
)
def test_a_broken_state_is_one_line(tmp_path, text):
    (tmp_path / "sweep.json").write_text(manifest())
    sweep = Sweep.open(tmp_path)
    [name] = sweep.runs
    (tmp_path / "states").mkdir()
    (tmp_path / f"states/{name}.json").write_text(text)
    with pytest.raises(UserError, match=rf"states/{name}\.json: cannot be read \(.*; remove it") as caught:
        sweep.rows()
    assert "\n" not in str(caught.value)


def test_the_last_error_is_the_reason(tmp_path):
    log = tmp_path / "log"
    assert last_words(output_lines(log)) == ""
    for said, reason in (
        ("a\nb\n\n", "b"),
        ("ValueError: a\n  b\n", "ValueError: a"),
        ("error: a\nCalledProcessError: of a launcher\n", "a"),
        ("node1: error: a\npdsh@node0: node1: ssh exited with exit code 1\n", "a"),
        (
            f"node1: {(gone := 'bash: line 1: python: No such file')}\nnode0: StoreError: b\n",
            f"node1: {gone}",
        ),
    ):
        log.write_text(said)
        assert last_words(output_lines(log)) == reason
    with pytest.raises(UserError, match=r"holds no sweep\.json"):
        Sweep.open(tmp_path)


def test_a_reason_is_of_the_attempt_that_failed_and_names_the_rank_that_was_killed(tmp_path):
    (tmp_path / "sweep.json").write_text(manifest())
    sweep = Sweep.open(tmp_path)
    [name] = sweep.runs
    log = sweep.log_of(name)
    log.parent.mkdir()
    log.write_text("error: HOSTFILE 'hosts' is missing\n")
    sweep.begin(name)
    assert sweep.end(name, 247)["reason"] == "killed by SIGKILL"
    sweep.begin(name)
    with log.open("a") as file:
        file.write("node0: error: rank 1 (host node1) ended without a word\npdsh@node0: node0: ssh exited\n")
    assert sweep.end(name, 247)["reason"] == "rank 1 (host node1) ended without a word"
    assert sweep.state(name)["attempts"] == 2


def test_a_search_that_has_asked_for_nothing_yet_opens_again(tmp_path):
    sweep_in(tmp_path).save()
    with pytest.raises(UserError, match="has no run yet; go on with its SPEC"):
        show(Sweep.open(tmp_path), parquet=False)
