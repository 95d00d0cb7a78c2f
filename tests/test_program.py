"""The program as a user runs it: `flava-ds train flava_debug` from an empty folder, on two ranks through the deepspeed launcher."""

import json
import subprocess
import sys

import pytest

from flava_ds import config as configuration
from flava_ds.recipes import resolve

OVERRIDES = ["--training.total-steps", "6", "--schedule.warmup-steps", "2", "--checkpoint.every-steps", "0", "--logging.no-tensorboard"]


@pytest.mark.distributed
@pytest.mark.slow
def test_debug_recipe_trains_on_two_ranks_and_its_configuration_rebuilds_it(tmp_path):
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", "--ranks", "2", *OVERRIDES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    run = tmp_path / "runs" / "flava_debug"
    assert resolve(str(run / "config.json"), []) == resolve("flava_debug", OVERRIDES)
    assert list((run / "checkpoints").glob("step_00000006"))
    header, *steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(6))
    losses = {key for line in steps for key in line if key.startswith("loss/")}
    assert {"loss/global_contrastive", "loss/mmm_image", "loss/mmm_text", "loss/itm"} <= losses
    assert header["config"] == configuration.to_dict(resolve("flava_debug", OVERRIDES))


@pytest.mark.distributed
def test_error_of_a_rank_is_one_line_of_the_program(tmp_path):
    """Bad bytes in a vocabulary are found by the ranks, not by the command: the line and the status come through the launcher."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", "--ranks", "1", "--data.vocabulary", "vocab.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] and "Traceback" not in done.stderr
