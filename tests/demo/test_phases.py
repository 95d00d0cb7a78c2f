"""The demo's phases: what they decide, and that each is left out where its product is there."""

import json
from pathlib import Path

import pytest

from flava_ds.demo import phases as demo_phases
from flava_ds.demo.state import Plan, open_demo
from flava_ds.ranks.launch import world_info
from flava_ds.recipes import resolve

SHORT = Plan(work="two-minutes")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """A working directory without runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(plan=SHORT, **decided):
    """A new demo in which something has been decided."""
    demo = open_demo(plan, ranks=2, new=True)
    demo.save(**decided)
    return demo


def names(plan):
    """The phases of a plan."""
    return [phase.name for phase in demo_phases.phases(opened(plan))]


def test_a_fixed_work_calibrates_nothing_and_takes_the_committed_codebook():
    common = ["train", "evaluate", "export", "report"]
    assert names(SHORT) == ["data", "precision", *common]
    assert names(Plan(work="hour", train_codebook=True)) == ["data", "precision", "codebook", *common]
    assert names(Plan(work=None, minutes=3)) == ["data", "precision", "calibrate", *common]


@pytest.mark.parametrize(("bf16", "expected"), [(300.0, "bf16"), (110.0, "fp32"), (20.0, "fp32")])
def test_precision_is_bf16_only_when_clearly_faster(monkeypatch, bf16, expected):
    rates = {"float32": 100.0, "bfloat16": bf16}
    monkeypatch.setattr(demo_phases, "gemm_rate", lambda dtype, threads: rates[dtype])
    monkeypatch.setattr(demo_phases.os, "sched_getaffinity", lambda _: {0, 1, 2})
    demo = opened()
    demo_phases.choose_precision(demo)
    assert demo.state["precision"] == expected
    rates = demo.state["gemm_rate"], demo.state["fp32_rate"]
    assert rates == (2 * (bf16 if expected == "bf16" else 100.0), 200.0), "two ranks at once"


def test_gemm_rate_is_positive_and_leaves_threads_alone():
    import torch

    before = torch.get_num_threads()
    assert demo_phases.gemm_rate("float32", threads=1, seconds=0.01) > 0
    assert torch.get_num_threads() == before


def test_launch_is_a_valid_run_on_cpu_ranks():
    demo = opened(precision="fp32")
    words = demo.overrides("calibration", demo.run_path)
    config = resolve("demo", words)
    assert config.run_path == demo.run_path / "calibration" and config.training.precision == "fp32"
    assert (
        config.codebook_weights == resolve("demo", []).codebook_weights
        and Path(config.codebook_weights).is_file()
    )
    launch = demo_phases.cpu_launch(words, ranks=2)
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "" and launch.environment["DS_ACCELERATOR"] == "cpu"
    assert f"--world_info={world_info(2, 0)}" in launch.arguments and launch.arguments[-len(words) :] == words


def test_a_codebook_of_its_own_is_used():
    demo = opened(Plan(work="two-minutes", train_codebook=True), precision="fp32")
    assert resolve("demo", demo.overrides("x", demo.run_path)).codebook_weights == str(
        demo.run_path / "codebook.safetensors"
    )


def test_an_evaluation_of_fewer_steps_does_not_count():
    demo = opened()
    assert not demo_phases.is_evaluated(demo)
    for step, done in ((demo.total_steps - 1, False), (demo.total_steps, True)):
        (demo.run_path / "evaluation.json").write_text(json.dumps({"step": step}))
        assert demo_phases.is_evaluated(demo) == done


@pytest.mark.parametrize(("plan", "limited"), [(SHORT, False), (Plan(work=None, minutes=2), True)])
def test_time_limits_evaluation_only_where_minutes_are_given(monkeypatch, plan, limited):
    asked = {}
    monkeypatch.setattr(
        "flava_ds.demo.evaluation.evaluator.evaluate_run", lambda run_path, **words: asked.update(words)
    )
    demo_phases.evaluate(opened(plan))
    assert (asked["limit_s"] is not None) == limited


def test_nothing_is_trained_before_there_is_a_checkpoint():
    demo = opened()
    assert demo_phases.trained_steps(demo) == 0 and not demo_phases.is_trained(demo)
