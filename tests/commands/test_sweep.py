"""`flava-ds sweep` as a user runs it: two runs, interrupted and continued; an array; every mistake in one
line.
"""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flava_ds import cli
from flava_ds.commands import sweep as command
from flava_ds.commands import sweep_jobs, sweep_runs
from flava_ds.errors import UserError
from flava_ds.ranks.launch import Launch
from flava_ds.scaling.sweep import Sweep

SPEC = """
base: flava_debug
fixed:
  training.total_steps: 16
  schedule.warmup_steps: 1
  logging.tensorboard: false
  data.sources.pair.global_batch_size: 8
  data.sources.image.weight: 0
  data.sources.text.weight: 0
grid:
  optimizer.lr: [1e-3, 1e-9]
hold_out: {optimizer.lr: 1e-9}
"""
STUDY = Path(__file__).parents[2] / "benchmarks" / "study.yaml"
QUICK = ["--ranks", "1", "--yes"]


def write_spec(folder, text=SPEC):
    path = folder / "two.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_two_runs_interrupted_and_continued(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec, folder = write_spec(tmp_path), tmp_path / "sweep"
    # somebody may commit while this runs
    words = ["sweep", str(spec), "--folder", str(folder), "--other-commit", *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "flava_ds.cli", *words], stdout=subprocess.PIPE, text=True
    )
    log = None
    deadline = time.monotonic() + 600
    while process.poll() is None and not (log is not None and log.read_text().count('"step"') > 1):
        log = next(iter(folder.glob("*/log.jsonl")), None)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # to the sweep alone, as a notebook does
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGINT, told
    assert "2 runs: " in told and "stopped by signal 2; the same command goes on with it" in told
    assert told.endswith("stopped by signal 2; the same command goes on from here\n")
    first, second = Sweep.open(folder).runs
    assert Sweep.open(folder).state(first)["state"] == "planned" and not (folder / second).exists()

    assert cli.main([*words, "--parquet"]) == 0
    sweep = Sweep.open(folder)
    assert [sweep.state(name)["attempts"] for name in sweep.runs] == [2, 1]
    assert "resumed" in (folder / first / "log.jsonl").read_text().splitlines()[0]
    rows = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    assert all(row["state"] == "finished" and row["samples"] == "128" for row in rows.values())
    assert rows[first]["parameters"] == "1124675" and rows[second]["held_out"] == "True"
    assert float(rows[first]["loss/mmm_text"]) < float(rows[second]["loss/mmm_text"]) - 0.05
    assert (folder / "sweep.html").read_text().count("<svg") == 3
    assert (folder / "results.parquet").stat().st_size > 0

    capsys.readouterr()
    assert cli.main(["sweep", str(folder), "--other-commit", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "0 of them now" in shown and shown.count("finished") == 2
    spec.write_text(SPEC.replace("[1e-3, 1e-9]", "[2e-3, 1e-9]"))
    assert cli.main(words) == 2
    assert "holds another sweep, with 1 run that" in capsys.readouterr().err


def options_of(*words):
    parser, _ = cli.build_parser()
    return parser.parse_args(["sweep", *words])


def planned_in(tmp_path, *words, folder="sweep"):
    options = options_of(str(write_spec(tmp_path)), "--folder", str(tmp_path / folder), *words)
    sweep, _ = sweep_runs.planned(options)
    sweep.save()
    return sweep, options


def test_a_failed_run_says_why_and_is_tried_again(tmp_path):
    sweep, options = planned_in(tmp_path, "--ranks", "1")
    (tmp_path / "runs").mkdir()
    name = next(iter(sweep.runs))
    # a file in the place of the run's folder: the real process fails at its start
    sweep.path_of(name).write_text("")
    assert sweep_jobs.run_one(sweep, name, "run 1", options) in (1, 2)
    state = sweep.state(name)
    assert state["state"] == "failed" and name in state["reason"] and "\n" not in state["reason"]
    assert name in sweep_runs.waiting(sweep, options)


def test_a_killed_run_has_failed_and_the_next_one_begins(tmp_path, capsys, monkeypatch):
    sweep, options = planned_in(tmp_path, "--ranks", "1")
    kill = Launch(arguments=[sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    monkeypatch.setattr(sweep_jobs, "command_of", lambda *_: kill)
    assert sweep_jobs.run_all(sweep, None, list(sweep.runs), options) == 0
    assert [sweep.state(name)["state"] for name in sweep.runs] == ["failed", "failed"]
    assert capsys.readouterr().out.count("failed: killed by SIGKILL") == 2


def test_a_run_that_goes_on_without_its_sweep_is_looked_at_again(tmp_path, capsys, monkeypatch):
    """The first one is in use when its turn comes, and no longer when the others have ended."""
    sweep, options = planned_in(tmp_path, "--ranks", "1")
    first, second = sweep.runs
    sweep.begin(first)  # by a sweep that was killed
    assert "nobody trains in its folder" in {row["run"]: row["reason"] for row in sweep.rows()}[first]
    begun, in_use = [], ["process 21472 is in use of it", None]
    monkeypatch.setattr(
        sweep_jobs,
        "runs_elsewhere",
        lambda path: in_use.pop(0) if path == sweep.path_of(first) else None,
    )

    def command_of(sweep, name, options):
        begun.append(name)
        return Launch(arguments=[sys.executable, "-c", "raise SystemExit(3)"])

    monkeypatch.setattr(sweep_jobs, "command_of", command_of)
    assert sweep_jobs.run_all(sweep, None, list(sweep.runs), options) == 0
    assert begun == [second, first] and in_use == []
    assert "left alone: process 21472" in capsys.readouterr().out


def test_a_run_that_is_still_in_use_at_the_end_is_told_and_no_success(tmp_path, capsys, monkeypatch):
    sweep, options = planned_in(tmp_path, "--ranks", "1", "--yes")
    first, second = sweep.runs
    sweep.begin(first)
    monkeypatch.setattr(
        sweep_jobs, "runs_elsewhere", lambda path: "in use" if path == sweep.path_of(first) else None
    )
    monkeypatch.setattr(sweep_jobs, "command_of", lambda *_: Launch(arguments=[sys.executable, "-c", "pass"]))
    sweep.path_of(second).mkdir()
    line = {"step": 0, "loss/mmm_text": 2.5, "seconds_per_step": 1.0, "samples_per_second": 8.0}
    (sweep.path_of(second) / "log.jsonl").write_text(json.dumps(line))
    assert command.run(options) == 1
    assert f"left alone: {first}; the same command looks again" in capsys.readouterr().out
    assert sweep.state(second)["state"] == "finished"


def test_a_slurm_array_notes_begin_and_end_of_its_tasks(tmp_path, capsys):
    # Slurm reads quotes in its settings as a shell does
    sweep, options = planned_in(tmp_path, "--slurm", "--nodes", "2", "--at-once", "1", folder="50% of it's")
    told = sweep_jobs.write_array(sweep, list(sweep.runs), options)
    script = (sweep.folder / "sweep.sbatch").read_text()
    for line in ("--array=0-1%1", "--nodes=2", "--requeue", "--signal=B:USR1@300", "--gpus-per-node=8"):
        assert f"#SBATCH {line}\n" in script
    settings = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    logs = f"{tmp_path}/50%% of it's/logs/%x-%A_%a.log"
    assert {"--job-name=50% of it's", f"--output={logs}"} <= {*settings}
    assert "sbatch " in told and script.count("--nodes") == 1
    assert subprocess.run(["bash", "-n", str(sweep.folder / "sweep.sbatch")], check=True).returncode == 0
    # a cluster whose srun fails: what the script itself does is real
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text("#!/bin/sh\necho error: no such node >&2\nexit 3\n")
    (bin_folder / "srun").chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1"}
    environment["PATH"] = f"{bin_folder}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    done = subprocess.run(["bash", str(sweep.folder / "sweep.sbatch")], env=environment, timeout=600)
    assert done.returncode == 3
    first, second = sweep.runs
    assert sweep.state(second)["reason"] == "no such node" and sweep.state(first)["state"] == "planned"
    (sweep.folder / "states" / f"{second}.json").write_text("{")  # what cannot begin is no success for Slurm
    done = subprocess.run(["bash", str(sweep.folder / "sweep.sbatch")], env=environment, timeout=600)
    assert done.returncode == 2 and "cannot be read" in sweep.log_of(second).read_text()


def test_a_hostfile_is_the_deepspeed_launchers(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=8\n")
    sweep, options = planned_in(tmp_path, "--hostfile", str(hosts))
    name = next(iter(sweep.runs))
    made = sweep_jobs.command_of(sweep, name, options)
    assert made.environment["HOSTFILE"] == str(hosts)
    # its flava-ds and deepspeed are found though no environment is active
    assert made.environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert made.arguments[1].endswith("launchers/deepspeed.sh") and made.arguments[2] == "flava_debug"
    assert made.arguments[-4:] == ["--logging.run-directory", str(sweep.folder), "--name", name]
    ports = {sweep_jobs.command_of(sweep, own, options).environment["PORT"] for own in sweep.runs}
    assert len(ports) == len(sweep.runs), "two sweeps on one first machine do not meet"


def test_a_hostfile_that_no_run_can_use_is_refused_before_the_first(tmp_path, capsys):
    spec, hosts = write_spec(tmp_path), tmp_path / "hosts"
    words = ["sweep", str(spec), "--folder", str(tmp_path / "sweep"), "--hostfile", str(hosts), "--yes"]
    hosts.write_text("node1 slots=4\n")
    spec.write_text(SPEC.replace("fixed:", "fixed:\n  data.sources.pair.shards: /nowhere/pairs"))
    for way in (words, [*words, "--dry-run"]):
        assert cli.main(way) == 2 and "no folder or .tar at '/nowhere/pairs'" in capsys.readouterr().err
    write_spec(tmp_path)
    for content, message in (("node1\n", "'node1' is no machine"), ("node1 slots=5\n", "not divisible by 5")):
        hosts.write_text(content)
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "sweep").exists()
    assert cli.main([*words, "--ranks", "2"]) == 2 and "--ranks is for" in capsys.readouterr().err
    search = {"by": "optuna", "runs": 3, "fields": {"optimizer.lr": {"from": 1e-5, "to": 1e-1, "log": True}}}
    spec.write_text(json.dumps({"base": "flava_debug", "search": search}))
    assert cli.main(words) == 2 and "not divisible by 5" in capsys.readouterr().err, "nor one of a search"


@pytest.mark.parametrize(
    "said",
    [
        "node1: {python}: No such file or directory".format(python="bash: line 1: /opt/venv/bin/python"),
        "pdsh@node0: node1: ssh exited with exit code 255",
    ],
)
def test_a_lost_machine_ends_a_sweep_before_all_its_runs_have_failed(tmp_path, monkeypatch, said):
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=8\n")
    sweep, options = planned_in(tmp_path, "--hostfile", str(hosts))
    fails = Launch(arguments=["bash", "-c", f"echo '{said}'; exit 1"])
    monkeypatch.setattr(sweep_jobs, "command_of", lambda *_: fails)
    with pytest.raises(UserError, match=r"no further run begins on these machines; mend .*hosts"):
        sweep_jobs.run_all(sweep, None, list(sweep.runs), options)
    first, second = sweep.runs
    assert (sweep.state(first)["state"], sweep.state(second)["state"]) == ("failed", "planned")


@pytest.mark.parametrize("words", [["--slurm"], ["--hostfile", "hosts"]])
def test_an_installed_package_has_no_launchers_and_says_so_before_anything_is_written(
    tmp_path, monkeypatch, capsys, words
):
    monkeypatch.setattr(sweep_jobs, "LAUNCHERS", tmp_path / "launchers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("node1 slots=8\n")
    (tmp_path / "seeds.yaml").write_text("base: flava_debug\nmetric: loss/mlm\nseeds: [0, 1]\n")
    assert cli.main(["sweep", "seeds.yaml", "--folder", "new", "--yes", *words]) == 2
    assert "launchers come with a clone of the repository, not with the package" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spec", "words", "message"),
    [
        (SPEC.replace("optimizer.lr: [1e-3", "optimizer.lrr: [1e-3"), [], "hold_out.optimizer.lr is no axis"),
        (SPEC.replace("total_steps", "total_step"), [], "unknown option '--training.total-step'"),
        (SPEC.replace("16", "-1"), [], "training.total_steps is -1"),
        (SPEC.replace("flava_debug", "flava_debu"), [], "no recipe named 'flava_debu'; did you mean"),
        (SPEC.replace("flava_debug", "mine.py:f"), [], "base 'mine.py:f' is code, which a file cannot name"),
        (SPEC.replace("[1e-3, 1e-9]", "[]"), [], "grid.optimizer.lr is empty"),
        ("grid: [", [], "two.yaml: line "),
        (f"{SPEC}metric: loss/nothing", ["--dry-run"], "metric is 'loss/nothing', which the log"),
        (f"{SPEC}metric: evaluation/food101/top1", ["--dry-run"], "task 'food101' does not run: add it to"),
        (f"{SPEC}metric: lr", ["--dry-run"], "metric is 'lr'; results have numbers that begin with loss/"),
        (SPEC, ["--ranks", "3"], "run of optimizer.lr 0.001: source 'pair': global_batch_size 8 is not divi"),
        (SPEC, [], "nobody can be asked here; add --yes"),
        (SPEC, ["--part", "x"], "--part x: the sweep has no such part"),
        (SPEC, ["--gpus", "2"], "--gpus is for --gpu"),
        (SPEC, ["--gpu", "h1000"], "did you mean 'h100'"),
        (SPEC, ["--slurm", "--hostfile", "h"], "choose one"),
        (SPEC, ["--hostfile", "gone"], "--hostfile gone: no such file"),
        (SPEC, ["--most", "0"], "--most 0: use at least 1"),
        (SPEC, ["--status"], "is a file; name the sweep's folder"),
    ],
)  # fmt: skip
def test_slips_are_one_line(tmp_path, capsys, spec, words, message):
    path = write_spec(tmp_path, spec)
    assert cli.main(["sweep", str(path), "--folder", str(tmp_path / "sweep"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "sweep").exists()


def test_the_small_study_can_be_run_as_it_is_written():
    options = options_of(str(STUDY), "--ranks", "2", "--yes")
    sweep, _ = sweep_runs.planned(options)
    configs = {name: sweep_runs.config_of(sweep, run) for name, run in sweep.runs.items()}
    command.check_start(sweep, configs, options)
    assert len(configs) == 31 and sum(run.held_out for run in sweep.runs.values()) == 1
    held_out = next(name for name, run in sweep.runs.items() if run.held_out)
    assert configs[held_out].training.total_steps == 1200 and configs[held_out].model.image.hidden_size == 192
    samples = {
        config.training.total_steps * sum(shares * config.global_batch_size(source) for source, shares in
                                          (("pair", 0.7), ("image", 0.15), ("text", 0.15)))
        for name, config in configs.items() if "batches" in sweep.runs[name].parts
    }  # fmt: skip
    assert max(samples) == pytest.approx(min(samples)) == pytest.approx(600 * 118.4)
    assert all("00008" not in str(source.shards) and source.shards.count("..0000") <= 1
               for config in configs.values() for source in config.data.sources.values())  # fmt: skip


def test_what_is_no_sweep_is_one_line(tmp_path, capsys):
    for place, message in ((tmp_path, "holds no sweep.json"), (tmp_path / "gone.yaml", "no such file")):
        assert cli.main(["sweep", str(place)]) == 2
        assert message in capsys.readouterr().err
