"""Recipes are the published ones, cut for other sizes; the order is a function of the update alone."""

import numpy as np
import pytest

from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.tuning.fitting import joined
from flava_ds.evaluation.tuning.recipe import Recipe

FAIRSEQ = {
    "glue_mnli": (32, 1e-5, 123873, 7432),
    "glue_qnli": (32, 1e-5, 33112, 1986),
    "glue_qqp": (32, 1e-5, 113272, 28318),
    "glue_rte": (16, 2e-5, 2036, 122),
    "glue_sst2": (32, 1e-5, 20935, 1256),
    "glue_mrpc": (16, 1e-5, 2296, 137),
    "glue_cola": (16, 1e-5, 5336, 320),
    "glue_stsb": (16, 2e-5, 3598, 214),
}


@pytest.mark.parametrize("name", FAIRSEQ)
def test_glue_has_fairseqs_table(name):
    recipe = tasks()[name].recipe
    assert (recipe.batch_size, recipe.lr, recipe.updates, recipe.warmup_updates) == FAIRSEQ[name]
    assert recipe.epochs == 10 and abs(recipe.last_update / recipe.updates - 1) < 0.24
    assert recipe.learning_rate(recipe.warmup_updates - 1) == pytest.approx(recipe.lr)
    assert recipe.learning_rate(recipe.updates) == 0
    assert recipe.fitted(recipe.samples) is recipe


def test_multimodal_tasks_have_the_papers():
    found = {
        name: (r.batch_size, r.lr, r.updates, r.warmup_updates, r.weight_decay)
        for name in ("vqav2", "snli_ve", "hateful_memes")
        for r in [tasks()[name].recipe]
    }
    assert found.pop("vqav2") == (256, 1e-4, 44_000, 2000, 1e-2)
    assert set(found.values()) == {(256, 1e-5, 24_000, 2000, 1e-2)}


def test_a_smaller_set_gets_as_many_passes_and_the_same_share_of_warmup():
    glue, pairs = tasks()["glue_qqp"].recipe.fitted(3200), tasks()["hateful_memes"].recipe.fitted(850)
    assert (glue.last_update, glue.updates, glue.warmup_updates) == (1000, 1000, 250)
    assert (pairs.last_update, pairs.warmup_updates) == (2400, 200)


def test_every_epoch_has_every_sample_once_in_another_order():
    recipe = Recipe(samples=10, batch_size=4, lr=1, updates=9, warmup_updates=0)
    epochs = [np.concatenate([recipe.rows("task", e * 3 + n) for n in range(3)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(recipe.rows("task", 2)) == 2 and [n for n in range(1, 10) if recipe.is_judged(n)] == [3, 6, 9]


@pytest.mark.parametrize(
    "first, second, most, expected",
    [
        (2, 2, 16, [1, 10, 11, 2, 20, 21, 2]),
        (6, 2, 9, [1, 10, 11, 12, 13, 2, 20, 21, 2]),
        (2, 6, 9, [1, 10, 11, 2, 20, 21, 22, 23, 2]),
        (6, 6, 8, [1, 10, 11, 12, 2, 20, 21, 2]),
    ],
)
def test_two_texts_are_one_sequence_whose_longer_part_is_cut(first, second, most, expected):
    a = np.array([1, *range(10, 10 + first), 2])
    b = np.array([1, *range(20, 20 + second), 2])
    assert joined(a, b, most).tolist() == expected
