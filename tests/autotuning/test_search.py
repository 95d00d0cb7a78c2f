"""Settings are tried one after the other by real steps, and the better ones are kept."""

import dataclasses
import json
import sys

import pytest

from flava_ds.autotuning import search
from flava_ds.autotuning.search import OUT_OF_MEMORY, Choice, Trial, Tuner, better, step_ms
from flava_ds.cli import main
from flava_ds.commands.tune import fastest
from flava_ds.errors import ConfigError
from flava_ds.ranks.launch import Launch

ONE, TWO = Choice("one", ("--seed", "1")), Choice("two", ("--data.num-workers", "2"))


def test_a_mean_step_is_of_the_shares_and_leaves_first_steps_out():
    steps = [("pair", 9.0), ("pair", 0.2), ("image", 5.0), ("pair", 0.4), ("pair", 0.3)]
    shares = {"pair": 0.6, "image": 0.2, "text": 0.2}
    assert step_ms(steps, shares) == pytest.approx(1e3 * (0.6 * 0.3 + 0.2 * 5.0) / 0.8)


def test_better_is_clearly_faster_or_fits_at_all():
    lost, slow = Trial({}, reason=OUT_OF_MEMORY), Trial({}, (100.0,), 1.0)
    close, fast = Trial({"a": ONE}, (98.5,), 1.0), Trial({"b": TWO}, (99.0, 97.0), 1.0)
    assert better(lost, slow) is slow and better(slow, lost) is slow
    assert better(slow, close) is slow and better(slow, fast) is fast


@pytest.mark.parametrize(
    ("times", "lines", "kept"),
    [
        # without TWO, with it, then again in turn, and at the end, if it is kept
        ({0: [100, 60], 2: [70, 65]}, [100, 70, 60, 65], {}),
        ({0: [100, 95, 96], 2: [70, 65, 66]}, [100, 70, 95, 65, 95, 65], {"workers": TWO}),
        ({0: [100], 2: [99]}, [100, 99], {}),
        ({0: [100, 99], 2: [70, None]}, [100, 70, 99, None], {}),
        ({0: [None], 2: [70]}, [None, 70], {"workers": TWO}),
    ],
    ids=["a busy moment", "a gain", "noise", "fails the second time", "fits alone"],
)
def test_a_gain_is_measured_again_before_it_is_kept(tuner, monkeypatch, times, lines, kept):
    def trial(choices, before=0):
        found = times[2 if choices else 0][before]
        return Trial(choices, reason=OUT_OF_MEMORY) if found is None else Trial(choices, (found,), 1.0)

    monkeypatch.setattr(Tuner, "measure", lambda self, *given: trial(*given))
    monkeypatch.setattr(search, "SETTINGS", (("workers", lambda *_: [TWO]),))
    trials = [*tuner.search()]
    assert [own.step_ms for own in trials] == lines
    best = fastest([*{own.title: own for own in trials}.values()])
    assert best.choices == kept


@pytest.fixture
def tuner(tmp_path):
    words, folder = ("--data.num-workers", "0"), tmp_path / "tune"
    return Tuner("flava_debug", words, (), ranks=2, gpus=0, device="CPU", folder=folder)


def test_what_is_tried_keeps_the_global_batch(tuner):
    config = tuner.config()
    found = {}
    for name, values in search.SETTINGS:
        for choice in values(tuner, config):
            other = tuner.config({name: choice})
            found[choice.title] = other
            assert {n: other.global_batch_size(n) for n in other.drawn_sources} == {
                n: config.global_batch_size(n) for n in config.drawn_sources
            }
    assert [found[f"zero{stage}"].engine.deepspeed_config for stage in (0, 2, 3)] == [
        "zero0",
        "zero2",
        "zero3",
    ]
    assert found["zero1_no_overlap"].engine.deepspeed_config == "zero1_no_overlap"
    assert found["micro-batches of 2"].training.gradient_accumulation_steps == 4
    assert found["activations recomputed"].training.activation_checkpointing
    small = json.loads((tuner.folder / "zero1_buckets_100m.json").read_text(encoding="utf-8"))
    assert small["zero_optimization"]["reduce_bucket_size"] == 100_000_000
    assert found["1 worker"].data.num_workers == 1
    words = (*tuner.overrides, "--training.precision", "bf16")
    half = dataclasses.replace(tuner, overrides=words)
    stages = [choice.title for choice in search.zero_stages(half, half.config())]
    assert stages == ["zero2", "zero3", "zero1_no_overlap"]
    alone = dataclasses.replace(tuner, ranks=1)
    assert [choice.title for choice in search.zero_stages(alone, config)] == ["zero1_no_overlap"]
    assert not [*search.buckets(alone, config)]


def test_real_steps_with_and_without_recomputation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "SETTINGS", (("recomputation", search.recomputation),))
    command = ["plan", "flava_debug", "--data.num-workers", "0", "--tune", "--json", "out.json"]
    assert main(command) == 0
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found == json.loads((tmp_path / "runs/flava_debug-tune/tuned.json").read_text(encoding="utf-8"))
    titles = ["as configured", "GELU recomputed", "activations recomputed"]
    assert [trial["settings"] for trial in found["trials"]] == titles
    assert all(trial["step_ms"] > 0 and trial["peak_memory_gib"] > 0 for trial in found["trials"])
    assert not list((tmp_path / "runs").rglob("log.jsonl"))  # runs of trials are not kept
    said = capsys.readouterr().out
    assert said.startswith("1 rank on a CPU\n  planned by FLOPs: at 5% to 35% of the ")
    first, gelu, blocks = found["trials"]
    assert f"{first['times_ms'][0]:.0f} ms a step, planned " in said
    low, high = first["planned_range_ms"]
    assert 0 < low < first["planned_ms"] < high, "a wide guess, until a trial has shown a rate"
    assert gelu["planned_ms"] == pytest.approx(first["times_ms"][0]), "GELU is no product"
    assert 1.1 * gelu["planned_ms"] < blocks["planned_ms"] < 4 / 3 * gelu["planned_ms"]
    monkeypatch.setattr(search, "plan_launch", None)  # results are there: nothing starts again
    assert main(command) == 0


def test_a_trial_says_why_it_failed(tuner, tmp_path):
    broken = dataclasses.replace(
        tuner, ranks=1, overrides=("--data.sources.pair.shards", str(tmp_path / "nowhere"))
    )
    with pytest.raises(ConfigError, match=r"flava_debug does not train here as it is configured: .*nowhere"):
        list(broken.search())
    file = tmp_path / "half.json"
    for text in (
        '{"steps": []',
        '{"steps": [], "peak_memory_gib": 1}',
        '{"steps": [["pair", NaN]], "peak_memory_gib": 1}',
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(
            ConfigError, match=r"half\.json: no result of a trial .*; delete it to run it again"
        ):
            search.read_trial(file)


def test_a_signal_that_ends_a_trial_ends_the_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begun = []

    def stopped(*_, **__):
        begun.append(1)
        return Launch(arguments=[sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"])

    monkeypatch.setattr(search, "plan_launch", stopped)
    assert main(["plan", "flava_debug", "--tune"]) == 128 + 15 and len(begun) == 1
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("  stopped by signal 15; the same command goes")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune", "--gpus", "8"], "--gpus is for a forecast, --tune measures on this machine"),
        (["--tune", "--simulate"], "--simulate is for a forecast, --tune measures on this machine"),
        (["--tune", "--ranks", "3"], "divi"),
        (["--tune", "--ranks", "0"], "--ranks 0: use at least 1"),
        (["--tune", "--price-per-gpu-hour", "0"], "--price-per-gpu-hour is for a forecast"),
        (["--ranks", "2"], "--ranks is for --tune; --gpus is the number of GPUs of a plan"),
    ],
)
def test_options_that_do_not_fit_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "flava_debug", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
