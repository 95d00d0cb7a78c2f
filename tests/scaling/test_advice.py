"""What a plan advises: options that do what it says of them."""

import pytest

from flava_ds.recipes import resolve
from flava_ds.scaling.advice import batch_options, changes
from flava_ds.scaling.facts import Facts
from flava_ds.scaling.hardware import cluster
from flava_ds.scaling.setting import setting_of
from flava_ds.scaling.work import ModelWork

MODEL = ModelWork("r", (), 0, {}, 0, {}, 2)


@pytest.mark.parametrize("recipe", ["demo_mlm", "flava_debug", "clip_base"])
def test_twice_the_batch_is_twice_the_batch(recipe):
    config = resolve(recipe, [])
    setting = setting_of(Facts.of(config), cluster("h100", 1, None, None), lambda _: MODEL)
    (option,) = [option for what, option, *_ in changes(setting, lambda _: MODEL) if what.startswith("twice")]
    doubled = resolve(recipe, option.split())
    for name in config.drawn_sources:
        assert doubled.global_batch_size(name) == 2 * config.global_batch_size(name)


def test_sources_without_a_batch_of_their_own_follow_training_s():
    sizes = {"a": 8, "b": 4, "c": 8}
    assert (
        batch_options(sizes, ("b",)) == "--training.global-batch-size 8 --data.sources.b.global-batch-size 4"
    )
