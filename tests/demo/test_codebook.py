"""The committed codebook: that of the recipe, made by today's settings, and good on pictures that it was not
trained on.
"""

import json
from pathlib import Path

import pytest
import torch

from flava_ds.codebook.config import SMALL
from flava_ds.codebook.image_codebook import load_codebook
from flava_ds.codebook.losses import code_usage
from flava_ds.config import ImageTransformConfig, to_dict
from flava_ds.demo import codebook as demo_codebook
from flava_ds.demo.dataset import unpack
from flava_ds.evaluation.samples import read_samples
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import CODEBOOK, DATA


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data set where the demo unpacks it, in a working directory of its own."""
    return unpack(tmp_path_factory.mktemp("demo") / DATA)


def test_it_was_made_by_the_settings_that_train_one_today(data, monkeypatch):
    monkeypatch.chdir(data.parents[len(DATA.parts) - 1])
    record, config = (
        json.loads(CODEBOOK.with_suffix(".json").read_text(encoding="utf-8")),
        resolve("demo", []),
    )
    assert record["training"] == json.loads(json.dumps(to_dict(SMALL))) and record["seed"] == config.seed
    assert record["codebook"] == json.loads(json.dumps(to_dict(config.codebook)))
    source = record["sources"]["pictures"]
    today = json.loads(json.dumps(to_dict(demo_codebook.source(config))))
    assert (source["kind"], source["shards"]) == (today["kind"], today["shards"])
    # Settings that the record does not have are younger than it, and must have their defaults.
    since = json.loads(json.dumps(to_dict(ImageTransformConfig())))
    assert since | source["transform"] == today["transform"]
    assert (
        record["curve"][-1]["step"] == SMALL.total_steps
        and record["curve"][0]["mse"] > record["curve"][-1]["mse"]
    )


def test_it_draws_pictures_of_unseen_styles_far_better_than_a_colour_per_picture_and_uses_most_codes(data):
    config = resolve("demo", [])
    codebook = load_codebook(CODEBOOK, config.codebook)
    pixels = read_samples(data / "pairs-unseen-style").pixels(config.codebook.image_size)[:1000]
    codes = codebook.encode(pixels)
    values = pixels.float() / 255
    error = (codebook.decode(codes) - values).square().mean()
    per_picture = (values - values.mean((2, 3), keepdim=True)).square().mean()
    perplexity, used = code_usage(codes, config.codebook.vocab_size)
    assert error < per_picture / 2.5 and used > 0.8 * config.codebook.vocab_size and perplexity > 150, (
        error,
        per_picture,
        used,
        perplexity,
    )
    assert torch.equal(codes, codebook.encode(pixels))
