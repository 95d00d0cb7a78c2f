"""The scripts of docs/examples/, run as their first lines say, and the API reference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from families.clip.peers import tiny_config
from families.family_checks import with_words
from hf.foreign import their_model
from PIL import Image

from flava_ds.families.clip.task import build_task
from flava_ds.hf.foreign import export
from flava_ds.recipes import resolve

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
TIMEOUT_S = 900
"""No measure of speed: a hang would last for ever."""
TWO_STEPS = ["--training.total-steps", "2", "--schedule.warmup-steps", "1", "--ranks", "1"]
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def run(folder: Path, *words: str) -> str:
    """Runs Python in a folder and returns what it printed."""
    done = start(folder, *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("demo_data")
def test_a_new_objective_trains_and_the_run_embeds_pictures(tmp_path):
    place = f"{EXAMPLES / 'mean_colour.py'}:recipe"
    run(tmp_path, "-m", "flava_ds.cli", "train", place, *TWO_STEPS)
    lines = (tmp_path / "runs" / "mean_colour" / "log.jsonl").read_text().splitlines()[1:]
    found = [json.loads(line) for line in lines]
    assert all(
        0 < line["loss/mean_colour"] < 10 and line["metric/distance/mean_colour"] > 0 for line in found
    )

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 40, 3), dtype=np.uint8)
    for name, pixels in (("a", noise[0]), ("b", noise[1]), ("a_again", noise[0])):
        Image.fromarray(pixels).save(pictures / f"{name}.png")
    embed = [str(EXAMPLES / "embed_pictures.py"), "runs/mean_colour", "pictures"]
    said = run(tmp_path, *embed, "--plugin", str(EXAMPLES / "mean_colour.py"))
    assert "a.png  ->  a_again.png" in said and "a_again.png  ->  a.png" in said
    vectors = np.load(tmp_path / "vectors.npz")
    assert vectors["names"].tolist() == ["a.png", "a_again.png", "b.png"]
    assert np.allclose(np.linalg.norm(vectors["vectors"], axis=1), 1, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("demo_data")
def test_training_continues_from_a_hugging_face_folder(tmp_path):
    their_model(resolve("flava_debug", [])).save_pretrained(tmp_path / "theirs")
    script = str(EXAMPLES / "continue_from_huggingface.py")
    run(tmp_path, script, "theirs", "--recipe", "flava_debug", "--steps", "2", "--schedule.warmup-steps", "1")
    run_path = tmp_path / "runs" / "flava_debug"
    assert json.loads((run_path / "config.json").read_text())["initial_weights"] == "converted"
    assert len((run_path / "log.jsonl").read_text().splitlines()) == 3


def test_mistakes_at_the_examples_are_one_line(tmp_path):
    config = with_words(tiny_config(), tmp_path)
    export(config, build_task(config).state_dict(), tmp_path / "clip")
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        (tmp_path / "pictures" / f"{name}.png").write_bytes(b"no picture")
    for words, message in (
        (["embed_pictures.py", "clip", "absent"], "absent is no folder"),
        (["embed_pictures.py", "absent", "pictures"], "absent: no such folder"),
        (["embed_pictures.py", "clip", "pictures"], "a.png: cannot be used: undecodable"),
        (["continue_from_huggingface.py", "clip"], "a model of family 'clip' and not a FLAVA"),
    ):
        done = start(tmp_path, str(EXAMPLES / words[0]), *words[1:])
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr[-2000:]


@pytest.mark.slow
def test_the_api_reference_has_every_public_module(tmp_path):
    pytest.importorskip("pdoc")
    found = run(ROOT / "docs", "-c", "import api; print(*api.modules())").split()
    expected = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for package in (ROOT / "flava_ds", ROOT / "kernels" / "flava_kernels")
        for path in package.rglob("*.py")
    ]
    left_out = ("flava_ds.demo.", "flava_kernels.triton_ops.")
    assert sorted(found) == sorted(name for name in expected if not f"{name}.".startswith(left_out))


@pytest.mark.slow
def test_pages_of_the_api_reference(tmp_path):
    """Of a few modules: pdoc takes a minute for all."""
    pytest.importorskip("pdoc")
    run(tmp_path, str(ROOT / "docs" / "api.py"), "api", "flava_ds.objectives.base", "flava_kernels.attention")
    page = (tmp_path / "api" / "flava_ds" / "objectives" / "base.html").read_text()
    assert "PooledObjective" in page and "scalar  fp32, with gradient" in page
    assert (tmp_path / "api" / "flava_kernels" / "attention.html").is_file()
    assert not (tmp_path / "api" / "flava_ds" / "demo").exists()
