"""The demo's decisions: names of runs, precision, time. Its whole course is run by `.ci/run`."""

import json
import os
import time
from pathlib import Path

import pytest

from flava_ds.demo import run as demo_run
from flava_ds.errors import UserError
from flava_ds.recipes import resolve


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    """A working directory without runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_demo_has_a_name_of_its_own(empty_folder):
    names = []
    for _ in range(3):
        demo = demo_run.open_demo(10, ranks=2, resume=False)
        demo.save_state(precision="fp32")
        names.append(demo.run_path.name)
    assert names == ["demo-10min", "demo-10min-2", "demo-10min-3"]


def test_resume_takes_up_the_latest_with_its_decisions(empty_folder):
    for seconds, steps in ((100, 7), (200, 9)):
        demo = demo_run.open_demo(10, ranks=2, resume=False)
        demo.save_state(precision="bf16", total_steps=steps)
        os.utime(demo.run_path / "demo_state.json", (seconds, seconds))
    demo = demo_run.open_demo(10, ranks=2, resume=True)
    assert demo.run_path.name == "demo-10min-2" and demo.state == {"precision": "bf16", "total_steps": 9}
    with pytest.raises(UserError, match="--resume: no run named demo-60min"):
        demo_run.open_demo(60, ranks=2, resume=True)


@pytest.mark.parametrize("minutes", [0.0, -1.0, 0.5, float("nan")])
def test_too_short_a_time_is_refused_before_anything_is_made(empty_folder, minutes):
    with pytest.raises(UserError, match="needs at least 1 minute"):
        demo_run.run(minutes=minutes, ranks=2, resume=False, enforce_gates=True)
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(("bf16", "expected"), [(300.0, "bf16"), (110.0, "fp32"), (20.0, "fp32")])
def test_precision_is_bf16_only_when_clearly_faster(empty_folder, monkeypatch, bf16, expected):
    monkeypatch.setattr(demo_run, "gemm_rate", lambda dtype, threads: {"float32": 100.0, "bfloat16": bf16}[dtype])
    demo = demo_run.open_demo(10, ranks=2, resume=False)
    demo_run.choose_precision(demo)
    assert json.loads((demo.run_path / "demo_state.json").read_text()) == {"precision": expected}


def test_gemm_rate_is_positive_and_leaves_threads_alone():
    import torch

    before = torch.get_num_threads()
    assert demo_run.gemm_rate("float32", threads=1, seconds=0.01) > 0
    assert torch.get_num_threads() == before


def test_launch_is_a_valid_run_on_cpu_ranks(empty_folder):
    demo = demo_run.open_demo(10, ranks=2, resume=False)
    demo.save_state(precision="fp32")
    words = demo.overrides("calibration", demo.run_path)
    config = resolve("demo", words)
    assert config.run_path == demo.run_path / "calibration" and config.training.precision == "fp32"
    assert config.codebook_weights == str(demo.run_path / "codebook.safetensors")
    launch = demo_run.cpu_launch(words, ranks=2)
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "" and launch.environment["DS_ACCELERATOR"] == "cpu"
    assert launch.arguments[1:3] == ["--num_gpus", "2"] and launch.arguments[-len(words) :] == words


def test_phases_record_their_seconds(empty_folder, capsys):
    demo = demo_run.open_demo(10, ranks=2, resume=False)
    with demo.phase("nap", "sleep"):
        time.sleep(0.02)
    assert demo.phases[0]["name"] == "nap" and demo.phases[0]["seconds"] >= 0.02
    assert "== 1/8 nap: sleep" in capsys.readouterr().out
    assert 590 < demo.left_s() < 600


def test_missed_gates_decide_the_status(empty_folder, monkeypatch, capsys):
    evaluation = {"metrics": {"matching/random/accuracy": 0.9}, "losses": {}, "left_out": {}}
    demo = demo_run.open_demo(10, ranks=2, resume=False)
    demo.save_state(precision="fp32", total_steps=5)
    assert demo_run.conclude(demo, evaluation, 1e-6, Path("report.html"), enforce_gates=True) == 1
    assert demo_run.conclude(demo, evaluation, 1e-6, Path("report.html"), enforce_gates=False) == 0
    summary = json.loads((demo.run_path / "demo.json").read_text())
    passed = {gate["what"]: gate["passed"] for gate in summary["gates"]}
    assert passed["image-text matching above chance"] and passed["minutes"]
    assert not passed["zero-shot top-5 20 x chance, flat style"], "what was not measured must not pass"
    printed = capsys.readouterr().out
    assert "MISS zero-shot top-5 20 x chance, flat style" in printed and "report.html" in printed


def test_resumed_demo_has_the_time_left_that_the_interrupted_one_had(empty_folder):
    demo = demo_run.open_demo(10, ranks=2, resume=False)
    demo.save_state(precision="fp32", used_s=60.0)
    (demo.run_path / "log.jsonl").touch()
    os.utime(demo.run_path / "demo_state.json", (1000, 1000))
    os.utime(demo.run_path / "log.jsonl", (1100, 1100))
    assert 430 < demo_run.open_demo(10, ranks=2, resume=True).left_s() <= 440, "a minute in finished phases, and 100 s of training"
