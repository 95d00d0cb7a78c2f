"""The program as a user runs it: `flava-ds train flava_debug` from an empty folder, on two ranks through the
deepspeed launcher.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.shard_files import write_tar
from PIL import Image

from flava_ds import config as configuration
from flava_ds.recipes import resolve

TIMEOUT_S = 900
"""Not a measure of speed: a run takes some 15 s on two idle cores, and a hang would last for ever."""

OVERRIDES = [
    "--training.total-steps",
    "6",
    "--schedule.warmup-steps",
    "2",
    "--checkpoint.every-steps",
    "0",
    "--logging.no-tensorboard",
]


def picture(number: int, mode: str = "RGB") -> bytes:
    """A JPEG, or a PNG where JPEG has no such mode, that its number determines."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG" if mode in ("P", "RGBA") else "JPEG")
    return stream.getvalue()


@pytest.mark.distributed
@pytest.mark.slow
def test_debug_recipe_trains_on_two_ranks_and_its_configuration_rebuilds_it(tmp_path):
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", "--ranks", "2", *OVERRIDES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    run = tmp_path / "runs" / "flava_debug"
    assert resolve(str(run / "config.json"), []) == resolve("flava_debug", OVERRIDES)
    assert resolve(str(run / "checkpoints" / "step_00000006" / "config.json"), []) == resolve(
        "flava_debug", OVERRIDES
    )
    header, *steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(6))
    losses = {key for line in steps for key in line if key.startswith("loss/")}
    assert {"loss/global_contrastive", "loss/mmm_image", "loss/mmm_text", "loss/itm"} <= losses
    assert header["config"] == configuration.to_dict(resolve("flava_debug", OVERRIDES))


ONLY_PAIRS = [
    *("--data.sources.image.weight", "0", "--data.sources.text.weight", "0"),
    *("--data.sources.pair.caption-key", "None"),
]


def train(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Runs `flava-ds train flava_debug` in a folder, on pairs alone."""
    command = [sys.executable, "-m", "flava_ds.cli", "train", "flava_debug", *OVERRIDES, *ONLY_PAIRS, *words]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _rank(folder: Path, words: list[str]) -> int:
    """On a rank: the program of a launcher, whose words go to files."""
    from flava_ds.train import main

    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    status = main(words)
    sys.stdout.flush(), sys.stderr.flush()
    return status


def train_here(run_ranks, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """What `train` starts with one rank, forked: without the seconds of two programs' imports."""
    whole = ["flava_debug", *OVERRIDES, *ONLY_PAIRS, *words]
    (status,) = run_ranks(_rank, 1, folder, whole)
    return subprocess.CompletedProcess(
        whole, status, (folder / "stdout").read_text(), (folder / "stderr").read_text()
    )


def errors_in(done: subprocess.CompletedProcess) -> list[str]:
    """Returns what a user would take for an error, the launcher's own complaints included."""
    return [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "error" in line.lower() or "Traceback" in line
    ]


def write_pairs(path: Path, pictures: list[bytes], captions: list[bytes]) -> str:
    """Writes one shard and returns its folder."""
    path.mkdir()
    members = []
    for number, (image, caption) in enumerate(zip(pictures, captions, strict=True)):
        members += [(f"{number:03d}.jpg", image), (f"{number:03d}.txt", caption)]
    write_tar(path / "0.tar", members)
    return str(path)


@pytest.mark.distributed
def test_two_ranks_with_the_same_bad_shards_say_one_line(tmp_path):
    """Both ranks find pictures that cannot be decoded, each by itself."""
    bad = write_pairs(tmp_path / "bad", [b"no picture"] * 120, [b"a dog"] * 120)
    done = train(tmp_path, "--ranks", "2", "--data.sources.pair.shards", bad)
    assert done.returncode == 2
    (line,) = errors_in(done)
    assert (
        line.startswith("error: source 'pair': ")
        and "undecodable" in line
        and "Repair the shards or raise --data.sources.pair.max-skipped-share" in line
    )


@pytest.mark.distributed
def test_too_few_samples_for_a_step_are_refused(tmp_path):
    few = write_pairs(tmp_path / "few", [picture(i) for i in range(3)], [b"a dog"] * 3)
    done = train(tmp_path, "--ranks", "1", "--data.sources.pair.shards", few)
    assert done.returncode == 2
    (line,) = errors_in(done)
    assert (
        "3 usable samples" in line
        and "fewer than the 16 of one step" in line
        and "--data.sources.pair.global-batch-size to at most 3" in line
    )


@pytest.mark.distributed
def test_bad_samples_are_skipped_counted_and_shown(run_ranks, tmp_path):
    whole, pairs = picture(0), 20
    odd = [whole[: len(whole) // 2], *[picture(0, mode) for mode in ("L", "CMYK", "P", "RGBA")], whole, whole]
    captions = [b"cut short", b"grey", b"cmyk", b"palette", b"alpha", b" ", b"x" * 10_000]
    shards = write_pairs(
        tmp_path / "odd", odd + [picture(i) for i in range(pairs)], captions + [b"a dog"] * pairs
    )
    done = train_here(run_ranks, tmp_path, "--data.sources.pair.shards", shards)
    assert done.returncode == 0, done.stderr
    steps = [
        json.loads(line)
        for line in (tmp_path / "runs" / "flava_debug" / "log.jsonl").read_text().splitlines()[1:]
    ]
    assert {key for step in steps for key in step if "skipped_samples" in key} == {
        f"skipped_samples/pair/{reason}" for reason in ("undecodable", "empty caption")
    }, "grey to alpha and 10,000 letters are usable"
    assert (
        "| skipped: " in done.stdout and "empty caption" in done.stdout and "skipped '000' in" in done.stderr
    )


@pytest.mark.distributed
def test_checkpoint_of_another_shape_is_refused_and_the_run_stays_whole(run_ranks, tmp_path):
    shards = [
        "--data.sources.pair.shards",
        write_pairs(tmp_path / "pairs", [picture(i) for i in range(20)], [b"a dog"] * 20),
    ]
    assert train_here(run_ranks, tmp_path, *shards).returncode == 0
    before = (tmp_path / "runs" / "flava_debug" / "config.json").read_text()
    done = train_here(run_ranks, tmp_path, *shards, "--model.image.hidden-size", "96")
    assert done.returncode == 2
    (line,) = errors_in(done)
    assert (
        "step_00000006" in line
        and "is [64], but this configuration's model has [96]" in line
        and "another --name" in line
    )
    assert (tmp_path / "runs" / "flava_debug" / "config.json").read_text() == before
