"""The walk of docs/own_data.md, as a stranger makes it: from photographs to a model in transformers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from own_photos import write_photos, write_texts

from flava_ds import cli

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "own_data.md").read_text(encoding="utf-8")
TRAIN = [
    *("flava_tiny", "--name", "mine", "--codebook-weights", "codebook.safetensors"),
    *("--data.sources.pairs.shards", "data/pairs"),
]
SMALL = [
    *("--training.total-steps", "4", "--schedule.warmup-steps", "1", "--training.global-batch-size", "12"),
    *("--model.image.num-hidden-layers", "1", "--model.text.num-hidden-layers", "1"),
    *("--model.multimodal.num-hidden-layers", "1", "--training.precision", "fp32", "--data.num-workers", "0"),
    *("--logging.every-steps", "1", "--data.sources.pairs.max-skipped-share", "0.2"),
]
"""What makes the walk's run short; the page's is flava_tiny's own."""


def run(folder: Path, *words: str, status: int = 0) -> str:
    """Runs the command in the stranger's folder; returns what it printed, complaints last."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flava_ds.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=600)
    assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def run_here(folder, monkeypatch, capfd) -> Callable[..., str]:
    """`run` in this process, for commands of which another test or another line starts the program."""

    def run_here(*words: str) -> str:
        monkeypatch.chdir(folder)
        assert cli.main(list(words)) == 0, words
        return "".join(capfd.readouterr())

    return run_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pairs in uneven shards, some bad; images, texts, and held-out pictures with labels."""
    folder = tmp_path_factory.mktemp("stranger")
    for number, count in enumerate((31, 48, 7)):
        write_photos(folder / "data" / "pairs" / f"{number:05d}.tar", count, seed=number, bad=number == 0)
    write_photos(folder / "data" / "images" / "00000.tar", 25, seed=7)
    write_texts(folder / "data" / "text" / "00000.tar", [5, 30, 80] * 5)
    for seed, split in enumerate(("train", "test")):
        write_photos(folder / "held_out" / split / "00000.tar", 18, seed=20 + seed)
    (folder / "held_out" / "templates.txt").write_text("a photo of the {}\nthe {}\n")
    return folder


@pytest.mark.slow
def test_a_stranger_gets_from_photographs_to_transformers(folder, run_here):
    printed = run(folder, "prepare", "index", "data/pairs", "data/images", "data/text")
    assert "data/pairs: 3 shards, 86 samples; members: jpg 86, json 86, txt 85" in printed
    printed = run_here("prepare", "check", "data/pairs", "--recipe", "flava_tiny")
    assert "(not utf-8 1, undecodable 1)" in printed and "missing caption 1" in printed
    printed = run(folder, *"codebook train data/pairs --out codebook.safetensors --total-steps 4".split())
    assert "a grid of 7 x 7" in printed and "step 4/4: mse" in printed and "use it: flava-ds train" in printed

    printed = run_here("train", *TRAIN, *SMALL, "--dry-run")
    assert "data: pairs 85 samples, 7.1 steps an epoch at 12" in printed and "-m flava_ds.train" in printed
    more = ["--data.sources.photos.kind", "image", "--data.sources.photos.shards", "data/images"]
    printed = run(folder, "train", *TRAIN, *SMALL, *more)
    losses = dict(re.findall(r"\b(global_contrastive|mim|mmm_image|itm) (\d+\.\d+)", printed))
    assert losses.keys() == {"global_contrastive", "mim", "mmm_image", "itm"}, printed
    assert "parameters: " in printed and "memory of a rank, an estimate" in printed
    assert "; see `flava-ds report runs/mine`" in printed

    words = ("--task", "zero_shot,retrieval,linear_probe", "--data", "held_out")
    found = json.loads(
        run(folder, "evaluate", "runs/mine", *words).split("\nown_")[0].split("own_zero_shot: ")[0]
    )
    assert found.keys() == {"own_zero_shot", "own_retrieval", "own_probe"}
    run(folder, "report", "runs/mine")
    page = (folder / "runs" / "mine" / "report.html").read_text()
    for number in ("own_zero_shot", "own_retrieval", "own_probe"):
        assert number in page
    assert 'id="retrieval"' not in page and "nearest neighbour on pixels" not in page  # the demo's sections


@pytest.mark.slow
def test_the_rest_of_the_walk(folder, run_here):
    """Needs the run of the test before."""
    file = folder / "second.yaml"
    file.write_text(
        "base: runs/mine/config.json\nseed: 1\ndata:\n  sources:\n"
        "    words: {kind: text, shards: data/text, weight: 0.25}\n"
    )
    printed = run_here("train", "second.yaml", "--dry-run")
    assert "words 15 samples" in printed and "photos 25 samples" in printed
    run_here("convert", "runs/mine", "--to", "hf", "hf")
    code = re.findall(r"```python\n(.*?)```", (DOCS / "transformers.md").read_text("utf-8"), flags=re.S)[0]
    done = subprocess.run(
        [sys.executable, "-c", code + AS_OURS], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch.Size([2, 192]) torch.Size([2, 7, 7])"), done.stdout
    image_difference, text_difference = map(float, done.stdout.split()[-2:])
    assert image_difference < 1e-5 and text_difference < 1e-5


AS_OURS = """
import flava_ds
ours = flava_ds.load("runs/mine", device="cpu")
normalize = torch.nn.functional.normalize
print((ours.encode_images(pictures) - normalize(images, dim=-1)).abs().max().item())
print((ours.encode_texts(["a beach", "a forest"]) - normalize(texts, dim=-1)).abs().max().item())
"""


def test_the_page_names_what_the_walk_runs():
    """The commands of the test stand on the page, up to what makes the run short."""
    page = " ".join(PAGE.replace("\\\n", " ").split())
    for command in (
        "flava-ds prepare index data/pairs ",
        "flava-ds prepare check data/pairs",
        "flava-ds codebook train data/pairs --out codebook.safetensors",
        f"flava-ds train {' '.join(TRAIN)}",
        "--data.sources.photos.kind image --data.sources.photos.shards data/images",
        "flava-ds evaluate runs/mine --task zero_shot,retrieval,linear_probe --data held_out",
        "flava-ds report runs/mine",
        "flava-ds convert runs/mine --to hf hf",
    ):
        assert command in page, command
