"""Plans follow the steps that a tuning has measured."""

import json

import pytest

from flava_ds.cli import main
from flava_ds.errors import ConfigError
from flava_ds.scaling.calibration import read_calibration
from flava_ds.storage.files import CACHE_VARIABLE


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """A cache that nothing but these tests has written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


TRIALS = [
    {"step_ms": step, "planned_ms": planned}
    for step, planned in ((130.0, 100.0), (120.0, 100.0), (75.0, 50.0), (None, 40.0), (90.0, None))
]


def written(folder, **changes):
    file = folder / "tuned.json"
    found = {"recipe": "x", "gpu": "h100", "precision": "fp32", "trials": TRIALS} | changes
    file.write_text(json.dumps(found), encoding="utf-8")
    return file


def test_a_calibration_is_of_the_trials_that_have_both(tmp_path):
    found = read_calibration(written(tmp_path), "h100", "fp32")
    assert (found.better, found.middle, found.worse, found.trials) == (1.2, 1.3, 1.5, 3)


def test_the_parts_of_a_calibrated_plan_take_the_measured_time(tmp_path, capsys):
    plans = {}
    for name, words in (("before", []), ("after", ["--calibration", str(written(tmp_path))])):
        words = ["plan", "flava_debug", "--gpus", "1", *words, "--json", str(tmp_path / f"{name}.json")]
        assert main(words) == 0
        plans[name] = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    before, after = plans["before"], plans["after"]
    loader = "waiting for the loader"  # takes what the step leaves, and is not calibrated
    parts = [{name: ms for name, ms in p["mean_ms"].items() if name != loader} for p in plans.values()]
    assert parts[1] == pytest.approx({name: 1.3 * ms for name, ms in parts[0].items()})
    assert after["mean_ms"][loader] < before["mean_ms"][loader]
    assert after["memory_bytes"] == before["memory_bytes"] and before["calibration"] is None
    assert "Calibrated by 3 trials in " in capsys.readouterr().out


def test_a_recipe_s_own_tuning_is_followed_if_it_is_of_the_same_gpu(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "flava_debug-tune").mkdir(parents=True)
    file = written(tmp_path / "runs" / "flava_debug-tune")

    def said(*words):
        assert main(["plan", "flava_debug", "--gpus", "1", *words]) == 0
        return capsys.readouterr().out

    assert "Calibrated by 3 trials in runs/flava_debug-tune/tuned.json" in said()
    for words in (
        ["--calibration", "none"],
        ["--gpu", "a100"],
        ["--name", "other"],
        ["--training.precision", "bf16"],
    ):
        assert "Calibrated" not in said(*words)
    written(file.parent, gpu=None)
    assert "Calibrated" not in said(), "measured on a CPU"
    file.write_text("{")
    assert not caplog.records and "Calibrated" not in said()
    (record,) = caplog.records
    assert record.getMessage().startswith("the plan does not follow runs/flava_debug-tune/tuned.json (")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trials": TRIALS[-1:]},
            r"tuned\.json: no trial has a forecast beside its measurement",
        ),
        ({"gpu": None}, r"tuned\.json: was made on a CPU, or on a GPU that the planner does not know"),
        (
            {"precision": "bf16"},
            r"was measured in bf16, this plan is for fp32; tune that, or use --training.p",
        ),
        ({"gpu": "a100"}, r"was measured on 'a100', this plan is for 'h100'; use --gpu a100"),
        ({"trials": [{"step_ms": -9.0, "planned_ms": 3}]}, r"tuned\.json: a trial took -3 times the planned"),
        ({"trials": [{"step_ms": float("nan"), "planned_ms": 3}]}, r"a trial took nan times"),
        ({"trials": 7}, r"tuned\.json: not the results of `flava-ds plan --tune`"),
    ],
)
def test_other_files_are_one_line(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_calibration(written(tmp_path, **changes), "h100", "fp32")
