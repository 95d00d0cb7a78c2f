"""The library's answers are those of the model, whatever a picture comes as; docs/library.md runs; mistakes
are one line.
"""

import dataclasses
import doctest
import errno
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_helpers import write_checkpoint
from PIL import Image
from sample_runs import picture, write_run

import flava_ds
from flava_ds import config as configuration
from flava_ds.cli import main
from flava_ds.errors import CheckpointError, DataError, UserError
from flava_ds.evaluation.frozen_model import Lacking
from flava_ds.families.flava.hf import without_heads
from flava_ds.families.flava.task import build_task
from flava_ds.given import read_picture

DOCS = Path(__file__).parents[1] / "docs" / "library.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    run, _ = write_run(folder)
    run.rename(run.parent / "demo")
    for number, name in ((10, "kite"), (14, "owl")):
        (folder / f"{name}.webp").write_bytes(picture(number, "noto"))
        Image.open(folder / f"{name}.webp").save(folder / f"{name}.png")
    return folder


@pytest.fixture
def tuned(folder):
    """A fine-tuning on texts of one's own, as the page has it."""
    (folder / "mine").mkdir()
    rows = ["text\tlabel", "owl\tanimal", "bear\tanimal", "kite\tthing", "moon\tthing"]
    for split in ("train", "test"):
        (folder / "mine" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    words = [folder / "runs" / "demo", "--task", "own_text_tuned", "--data", folder / "mine"]
    assert main(["evaluate", *map(str, words), "--keep-weights"]) == 0


@pytest.fixture(scope="module")
def model(folder):
    return flava_ds.load(folder / "runs" / "demo", precision="fp32")


def test_the_page_runs_as_it_says(folder, tuned, monkeypatch):
    monkeypatch.chdir(folder)
    results = doctest.testfile(str(DOCS), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.attempted > 12 and results.failed == 0


def test_a_picture_is_the_same_however_it_comes(model, folder):
    path = folder / "kite.png"
    image = Image.open(path)
    clear = image.convert("RGBA")
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    found = model.encode_images([path, str(path), image, clear, palette, tensor], batch_size=4)
    for row in found[1:]:
        torch.testing.assert_close(row, found[0], atol=1e-5, rtol=1e-5)
    transparent = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    white = Image.new("RGB", (30, 20), "white")
    torch.testing.assert_close(*model.encode_images([transparent, white]))
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    stored = folder / "turned.png"
    turned.save(stored, exif=turned.getexif())
    torch.testing.assert_close(*model.encode_images([stored, Image.open(stored)]))


def test_vectors_are_normalised_and_do_not_depend_on_the_batch(model, folder):
    images = [folder / "kite.png", folder / "owl.png"] * 3
    found, one_by_one = (
        model.encode_images(images),
        torch.cat([model.encode_images([image]) for image in images]),
    )
    torch.testing.assert_close(found, one_by_one)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    texts = ["kite", "a drawing of owl", "the"]
    torch.testing.assert_close(model.encode_texts(texts), model.encode_texts(texts, batch_size=2))
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(
        found,
        model._model.need(flava_ds.api.Embedder, "a test").project_images(
            model._model.need(flava_ds.api.Embedder, "a test").image_features(model._pixels(images))
        ),
    )


def test_matching_is_the_sigmoid_of_the_heads_log_odds(model, folder):
    images, texts = (
        [folder / "kite.png", folder / "owl.png", folder / "kite.png"],
        ["kite", "bear", "a drawing of kite"],
    )
    found = model.match(images, texts, batch_size=2)
    matcher = model._model.need(flava_ds.api.Matcher, "a test")
    [odds] = matcher.log_odds(model._pixels(images), [model._ids(texts, "pair")])
    torch.testing.assert_close(found, torch.sigmoid(odds))


def test_masked_words_are_the_heads_likeliest(model, folder):
    scorer, tokenizer = model._model.need(flava_ds.api.Scorer, "a test"), model._model.tokenizer
    [ids] = model._ids(["a [MASK] of [MASK]"], "text")
    logits = scorer.read([ids]).tokens(torch.tensor([2, 4])).logits().softmax(-1)
    found = model.fill_mask("a [MASK] of [MASK]", top_k=4)
    for row, guesses in enumerate(found):
        assert [guess.word for guess in guesses] == [
            tokenizer.token(int(token)) for token in logits[row, : tokenizer.vocab_size].topk(4).indices
        ]
        assert guesses[0].probability == pytest.approx(float(logits[row, : tokenizer.vocab_size].max()))
    beside = model.fill_mask("a [MASK] of [MASK]", folder / "kite.png")
    assert len(beside) == 2 and len(beside[0]) == 5 and beside != found


def test_mistakes_are_named(model, folder):
    (folder / "no_picture.png").write_bytes(b"text")
    (converted := folder / "converted").mkdir()
    shutil.copy(folder / "runs" / "demo" / "config.json", converted)
    (converted / "model.safetensors").touch()
    cases = [
        (lambda: model.encode_images([]), UserError, "images: give a list"),
        (lambda: model.encode_images(folder / "kite.png"), UserError, "images: give a list"),
        (lambda: model.encode_images(iter([folder / "kite.png"])), UserError, "images: give a list"),
        (lambda: model.encode_texts(["a", None]), UserError, "a text is None; give strings"),
        (lambda: model.fill_mask(["a [MASK]"]), UserError, r"a text is \['a \[MASK\]'\]; give strings"),
        (lambda: model.encode_images([folder / "absent.png"]), DataError, "absent.png: cannot be read"),
        (
            lambda: model.encode_images([folder / "no_picture.png"]),
            DataError,
            "no_picture.png: cannot be used",
        ),
        (lambda: model.fill_mask("a [MASK]", top_k=0), UserError, "top_k 0: use at least 1"),
        (lambda: model.encode_images([3]), DataError, "an image is 3; give a PIL image, a path"),
        (lambda: model.encode_images([torch.zeros(3, 4, 4)]), DataError, r"torch.float32 \[3, 4, 4\]"),
        (lambda: model.encode_images([np.zeros((9, 9, 3))]), DataError, r"an image is array\(\[\[\[0"),
        (lambda: model.encode_images([Image.new("RGB", (0, 5))]), DataError, "an image has 0 x 5 pixels"),
        (lambda: model.encode_images([torch.zeros(3, 4, 0, dtype=torch.uint8)]), DataError, "has 4 x 0 pi"),
        (lambda: model.encode_texts(["\ud800 kite"]), UserError, "with half of a surrogate pair; leave"),
        (lambda: model.encode_texts(["x"], batch_size=0), UserError, "batch_size 0"),
        (lambda: model.match([folder / "kite.png"], ["a", "b"]), UserError, "1 images and 2 texts"),
        (lambda: model.draw(["kite"], steps=0), UserError, "steps 0: use at least 1"),
        (lambda: model.fill_mask("no mask"), UserError, "0 \\[MASK\\] among"),
        (
            lambda: model.fill_mask("kite " * 30 + "[MASK]"),
            UserError,
            "0 \\[MASK\\] among the first 20 tokens",
        ),
        (lambda: flava_ds.load(folder), UserError, "holds no config.json"),
        (lambda: flava_ds.load(folder / "kite.png"), UserError, "kite.png: is a file; give a run"),
        (lambda: flava_ds.load(converted), CheckpointError, "start a run from, with --initial-weights"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_grey_of_16_bits_is_the_same_as_a_file_and_from_pillow(tmp_path, mode):
    values = np.arange(0, 65536, 257 * 4, dtype=np.uint16)[:64].reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    expected = read_picture(tmp_path / "grey.png")
    assert len(expected.unique()) > 50
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (8, 8), values.astype(kind).tobytes())
    assert torch.equal(read_picture(image), expected)


def test_what_pillow_cannot_read_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(DataError, match="cut.jpg: cannot be read .*; get the file again"):
        read_picture(Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(DataError, match="a PIL image has mode F"):
        read_picture(Image.new("F", (8, 8)))


def test_a_model_without_heads_says_so(tmp_path):
    run, _ = write_run(tmp_path)
    config = configuration.load(run / "config.json")
    first = dict([next(iter(config.data.sources.items()))])
    bare = dataclasses.replace(config.with_sources(first), objectives=without_heads(config.objectives))
    configuration.save(bare, run / "config.json")
    write_checkpoint(run / "checkpoints", 13, build_task(bare).state_dict(), bare)
    model = flava_ds.load(run)
    assert model.encode_texts(["kite"]).shape == (1, 16)
    with pytest.raises(Lacking, match="needs Matcher"):
        model.match([torch.zeros(3, 8, 8, dtype=torch.uint8)], ["kite"])
    with pytest.raises(Lacking, match="needs Scorer"):
        model.fill_mask("[MASK]")


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "runs/demo/config.json")

    monkeypatch.setattr("flava_ds.api.open_model", refuse)
    with pytest.raises(UserError, match="^runs/demo/config.json: Permission denied; "):
        flava_ds.load(folder / "runs" / "demo")


def test_a_damaged_checkpoint_is_named(tmp_path):
    run, _ = write_run(tmp_path)
    weights, *_ = sorted((run / "checkpoints" / "step_00000012").glob("weights_*"))
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="weights_00000"):
        flava_ds.load(run)


def test_importing_the_package_loads_nothing():
    code = (
        "import sys, flava_ds; assert 'torch' not in sys.modules; flava_ds.load; assert 'torch' in "
        "sys.modules; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = flava_ds.loads
