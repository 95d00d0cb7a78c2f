"""The demo's recipes fit the data set and each other."""

import pytest
from demo_flops import planned_flops

from flava_ds.codebook.image_codebook import load_codebook
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import INITIALIZER_RANGE, VOCABULARY, VOCABULARY_SIZE, demo
from flava_ds.recipes.flava_debug import flava_debug


def test_vocabulary_size_is_that_of_the_file():
    assert len(VOCABULARY.read_text(encoding="utf-8").splitlines()) == VOCABULARY_SIZE


@pytest.mark.parametrize("recipe", [demo, flava_debug])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_batches_divide_over_ranks(recipe, ranks):
    config = recipe()
    assert all(
        config.micro_batch_size(name, ranks) * ranks == config.global_batch_size(name)
        for name in config.data.sources
    )


@pytest.mark.parametrize("recipe", [demo, flava_debug])
def test_all_six_losses_are_on(recipe):
    objectives = recipe().objectives
    names = ("global_contrastive", "mim", "mlm", "mmm_image", "mmm_text", "itm")
    assert all(objectives[name].weight >= 1.0 for name in names)


@pytest.mark.parametrize("recipe", [demo, flava_debug])
def test_the_committed_codebook_is_that_of_the_recipe(recipe):
    config = recipe()
    assert load_codebook(config.codebook_weights, config.codebook).config == config.codebook


def test_debug_is_twenty_small_steps():
    config = flava_debug()
    assert config.training.total_steps == 20
    assert config.model.image.hidden_size <= 64 and config.training.global_batch_size <= 16


RIVALS = "albef align bert lxmert simvlm unit uniter vilbert vilt vinvl visualbert vlbert".split()


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_start_from_weights_as_wide_as_the_demo_s(name):
    config = resolve(f"demo_{name}", [])
    (words,) = (
        own
        for own in config.model.build(config).model.parameters()
        if own.ndim == 2 and len(own) == VOCABULARY_SIZE
    )
    cut_at_two_deviations = 0.8796
    assert float(words.detach().std()) == pytest.approx(cut_at_two_deviations * INITIALIZER_RANGE, rel=0.01)


@pytest.mark.parametrize(
    ("name", "pair", "regions"),
    [("lxmert", 12, 4), ("vilbert", 12, 4), ("uniter", 12, 4), ("vinvl", 16, 4), ("visualbert", 23, 4)]
    + [("vlbert", 12, 4), ("unit", 9, 0)],
)
def test_rivals_on_scenes_have_the_demo_s_training_flops(name, pair, regions):
    """With the scenes' averages: tokens of a pair, regions found, and 20 tokens of a text. Those without
    regions are counted on their data, in tests/campaigns/test_comparison.py.
    """
    averages = {"max_regions": regions} if regions else {}
    found = planned_flops(resolve(f"demo_{name}", []), {"pair": pair, "image": pair, "text": 20}, **averages)
    assert found == pytest.approx(600 * 24.9e9, rel=0.04)
