"""Sources that options add beside a recipe's own."""

import pytest

from flava_ds.config import SourceConfig
from flava_ds.errors import ConfigError
from flava_ds.recipes import resolve


def test_options_add_a_source_with_fields_of_its_own():
    words = ["--data.sources.my_photos.kind", "image", "--data.sources.my-photos.shards=/photos"]
    words += ["--data.sources.my-photos.weight", "0.2", "--data.sources.my_photos.transform.grayscale=0.5"]
    plain, config = resolve("flava_base", []), resolve("flava_base", words)
    added = config.data.sources["my_photos"]
    assert (added.kind, added.shards, added.weight) == ("image", "/photos", 0.2)
    assert added.transform.grayscale == 0.5
    assert {name: own for name, own in config.data.sources.items() if name != "my_photos"} == (
        plain.data.sources
    )


def test_a_source_of_text_fits_the_model():
    words = ["--data.sources.more.kind", "text", "--data.sources.more.shards", "/text"]
    assert resolve("flava_debug", words).data.sources["more"] == SourceConfig(
        kind="text", shards="/text", max_tokens=64
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.sources.more.kind", "pair"], "to add it, give --data.sources.more.shards FOLDER too"),
        (["--data.sources.imagnet.shards", "x"], "no source is called 'imagnet'; did you mean 'imagenet'?"),
        (
            ["--data.sources.more.kind", "par", "--data.sources.more.shards", "x"],
            "--data.sources.more.kind 'par': choose one of pair, image, text",
        ),
        (
            ["--data.sources.more.weight", "1"],
            "no source is called 'more'; there is pmd, imagenet, text; to add it, give "
            "--data.sources.more.kind pair|image|text and --data.sources.more.shards FOLDER",
        ),
        (
            ["--data.sources.imagnet.transform.grayscale=1"],
            "no source is called 'imagnet'; did you mean 'imagenet'?",
        ),
        (["--data.sources.pmd.wieght", "1"], "did you mean '--data.sources.pmd.weight'?"),
        (
            ["--data.sources.a/b.kind", "pair", "--data.sources.a/b.shards", "x"],
            "'a/b' cannot name a source",
        ),
    ],
)
def test_slips_are_one_line(words, message):
    with pytest.raises(ConfigError) as caught:
        resolve("flava_base", words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
