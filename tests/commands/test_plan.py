"""`flava-ds plan` as a user runs it, and every mistake in one line."""

import json

import pytest

from flava_ds import cli

DEBUG = ["plan", "flava_debug", "--gpus", "4"]


def test_a_plan_on_the_screen_as_json_and_as_a_page(tmp_path, capsys):
    written, page = tmp_path / "plan.json", tmp_path / "plan.html"
    words = ["--price-per-gpu-hour", "2", "--json", str(written), "--page", str(page)]
    assert cli.main([*DEBUG, *words, "--simulate", "--scale", "1,4,16,32"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "Forecast: nothing of this was measured",
        "samples/s",
        "the bottleneck is",
        "What would help",
    ):
        assert words in shown
    assert "does not divide" in shown, "16 samples on 32 GPUs"
    found = json.loads(written.read_text())
    assert found["forecast"] and found["parameters"]["trainable"] == 1_124_675
    assert found["cost"]["middle"] == pytest.approx(2 * found["gpu_hours"]["middle"])
    for estimate in (found["samples_per_second"], found["mfu_percent"], found["peak_gib"]):
        assert estimate["low"] < estimate["middle"] < estimate["high"]
    assert sum(found["mean_ms"].values()) == pytest.approx(found["step_ms"]["middle"])
    assert len(found["simulated"]) == 8 and found["fits"] == "yes"
    assert page.read_text().count("<svg") == 3


def test_a_model_that_does_not_fit_says_what_would(capsys):
    assert cli.main(["plan", "flava_base", "--gpus", "1", "--gpu", "a100-40"]) == 0
    shown = capsys.readouterr().out
    assert "fits no; --training.gradient-accumulation-steps" in shown.replace("Memory: ", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "flava_base", "--gpu", "h1000"], "--gpu 'h1000' is unknown; did you mean 'h100'?"),
        (["plan", "flava_base", "--network", "ib"], "--network 'ib' is unknown"),
        (["plan", "flava_base", "--gpus", "100"], "global_batch_size 8192 is not divisible by 100 ranks"),
        (["plan", "flava_debug", "--gpus", "32"], "global_batch_size 16 is not divisible by 32 ranks"),
        (["plan", "flava_base", "--captions", "gone.json"], "gone.json: no such file"),
        (["plan", "flava_base", "--captions", "gone"], "'gone' is not a .tar file"),
        (["plan", "flava_base", "--scale", "8"], "--scale is for --simulate"),
        (["plan", "flava_base", "--simulate", "--scale", "8,x"], "--scale '8,x': give numbers of GPUs"),
        (["plan", "flava_base", "--price-per-gpu-hour", "-1"], "--price-per-gpu-hour -1: use a number"),
        (["plan", "flava_base", "--price-per-gpu-hour", "nan"], "--price-per-gpu-hour nan: use a number"),
        (["plan", "flava_base", "--price-per-gpu-hour", "inf"], "--price-per-gpu-hour inf: use a number"),
        (["plan", "flava_base", "--gpuss", "8"], "unknown option '--gpuss'; did you mean '--gpus'?"),
        (["plan", "flava_bas"], "no recipe named 'flava_bas'; did you mean 'flava_base'?"),
        (
            ["plan", "flava_debug", "--gpu", "a100-40", "--gpus", "1", "--model.image.hidden-size", "65536",
             "--model.image.num-attention-heads", "1024"],
            "fits no GPU that is known, in no setting",
        ),
    ],
)  # fmt: skip
def test_slips_are_one_line(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
