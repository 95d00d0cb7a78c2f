"""`flava-ds plan` as a user runs it, and every mistake in one line."""

import json
import os
import subprocess
import sys

import pytest

from flava_ds import cli
from flava_ds.storage.files import CACHE_VARIABLE

DEBUG = ["plan", "flava_debug", "--gpus", "4"]
WITHOUT_TORCH = (
    "import sys; from flava_ds import cli; status = cli.main(sys.argv[1:]); "
    "sys.exit(status or 'torch' in sys.modules)"
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """A cache that nothing but these tests has written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


def test_the_second_plan_is_the_same_and_needs_no_torch(tmp_path, capfd):
    assert cli.main(DEBUG) == 0
    first = capfd.readouterr().out
    other = ["--gpu", "a100", "--engine.deepspeed-config", "zero2", "--simulate"]
    texts = []
    for more in ([], other, [*other, "--page", str(tmp_path / "p.html")]):
        words = [sys.executable, "-c", WITHOUT_TORCH, *DEBUG, *more]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        texts.append(done.stdout)
    assert texts[0] == first
    assert cli.main([*DEBUG, *other]) == 0
    assert capfd.readouterr().out == texts[1]


@pytest.mark.parametrize("option", ["--json", "--page"])
def test_a_plan_makes_no_folder_for_its_file_and_says_so_before_it_plans(tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*DEBUG, option, str(tmp_path / "pllans" / "plan")])
    assert f"'{tmp_path / 'pllans'}' is no folder; make it first" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


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
    for part, middle in found["mean_ms"].items():
        low, high = found["mean_ms_range"][part]
        assert low <= middle <= high and (low < high or part == "waiting for the loader" or not high)
    assert sum(found["mean_ms"].values()) == pytest.approx(found["step_ms"]["middle"])
    assert len(found["simulated"]) == 8 and found["fits"] == "yes"
    for row in found["simulated"]:
        for number in ("samples_per_second", "wall_s") if row.get("divides", True) else ():
            assert row[number]["low"] < row[number]["middle"] < row[number]["high"], (row["gpus"], number)
    assert page.read_text().count("<svg") == 3


def test_an_offloaded_optimizer_s_host_memory_and_what_it_would_gain_on_the_device(tmp_path, capsys):
    """The gain of an advice is that of planning again with its option, at each end of the assumptions."""
    found, page = {}, tmp_path / "plan.html"
    for name in ("zero2_offload", "zero2"):
        written = tmp_path / f"{name}.json"
        words = ["--training.precision", "bf16", "--engine.deepspeed-config", name, "--json", str(written)]
        assert cli.main([*DEBUG, *words, *(["--page", str(page)] if name != "zero2" else [])]) == 0
        found[name] = json.loads(written.read_text())
        found[name]["text"] = capsys.readouterr().out
    offload, device = found["zero2_offload"], found["zero2"]
    assert device["host_bytes"]["machine"] == 0 and "host memory" not in device["text"]
    each = 18 * 1_124_675 / 4
    usual = 4 * 256 * 2**30
    assert offload["host_bytes"] == pytest.approx({"rank": each, "machine": 4 * each, "usual_machine": usual})
    for text in (offload["text"], page.read_text()):
        assert "of host memory for each rank" in text and "usually have 1,024.0 GiB" in text
    (advice,) = [own for own in offload["advice"] if own["what"] == "optimizer on the device"]
    rates = [(device["samples_per_second"][end], offload["samples_per_second"][end]) for end in
             ("low", "middle", "high")]  # fmt: skip
    gains = [after / before - 1 for after, before in rates]
    assert advice["gain"] == pytest.approx({"low": min(gains), "middle": gains[1], "high": max(gains)})
    line = f"{gains[1]:+.1%} ({min(gains):+.1%} to {max(gains):+.1%}) samples/s: optimizer on the device"
    assert line in offload["text"] and line in page.read_text()


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
        (["plan", "flava_base", "--gpus", "64", "--nodes", "4"], "--nodes 4: a machine has 8 GPUs at most"),
        (["plan", "flava_base", "--captions", "gone.json"], "gone.json: no such file"),
        (["plan", "flava_base", "--captions", "gone"], "'gone' does not exist"),
        (["plan", "flava_base", "--scale", "8"], "--scale is for --simulate"),
        (["plan", "flava_base", "--failures", "opt"], "--failures is for --simulate"),
        (["plan", "flava_base", "--simulate", "--scale", "8,x"], "--scale '8,x': give numbers of GPUs"),
        (["plan", "flava_base", "--simulate", "--scale", "²"], "--scale '²': give numbers of GPUs"),
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
        (
            ["plan", "flava_debug", "--gpu", "a100", "--gpus", "1", "--training.precision", "bf16",
             "--model.image.hidden-size", "32768", "--model.image.num-attention-heads", "256"],
            "and offloaded 162.9 GiB of each machine's 144.0 GiB of host memory); the nearest GPU that "
            "takes it is --gpu h100, with 80 GiB and 256 GiB of host memory",
        ),
        (
            ["plan", "flava_debug", "--gpu", "h100", "--gpus", "1", "--training.precision", "fp32",
             "--model.image.hidden-size", "38912", "--model.image.num-attention-heads", "304"],
            "as it is); the nearest GPU that takes it is --gpu h200, with 141 GiB",
        ),
    ],
)  # fmt: skip
def test_slips_are_one_line(words, message, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
