"""Order is a bijection and a pure function; uniform draws are uniform and independent of each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.data.order import hash64, mix64, sample_at, sample_seed, uniform_at, uniforms


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(size, seed, source, epoch):
    order = sample_at(seed, source, epoch, np.arange(size), size)
    assert np.array_equal(np.sort(order), np.arange(size))


def test_one_position_at_a_time_agrees_with_many_across_epochs():
    positions = np.arange(500)
    together = sample_at(3, 1, positions // 77, positions % 77, 77)
    alone = [int(sample_at(3, 1, p // 77, p % 77, 77)) for p in positions.tolist()]
    assert together.tolist() == alone


def test_seed_source_and_epoch_each_give_another_order():
    orders = {sample_at(*key, np.arange(40), 40).tobytes() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (31, 0, 0), (0, 0, 31), (0, 31, 0)]}
    assert len(orders) == 7


def test_the_order_is_well_mixed():
    """Over many epochs every sample stands at every place equally often (chi-squared with 399 degrees of freedom: 99.99 % below 514)."""
    epochs = np.repeat(np.arange(4000), 20)
    order = sample_at(0, 0, epochs, np.tile(np.arange(20), 4000), 20).reshape(4000, 20)
    counts = np.stack([np.bincount(order[:, place], minlength=20) for place in range(20)])
    assert ((counts - 200) ** 2 / 200).sum() < 514
    neighbours = np.mean(np.diff(sample_at(0, 0, 0, np.arange(10_000), 10_000)) == 1)
    assert neighbours < 0.002


def test_a_large_corpus_needs_no_table():
    order = sample_at(0, 0, 3, np.array([0, 1, 2, 4 * 10**9 - 1]), 4 * 10**9)
    assert len(set(order.tolist())) == 4
    assert 0 <= order.min() and order.max() < 4 * 10**9


def test_unshuffled_is_the_identity_and_positions_are_checked():
    assert sample_at(0, 0, 9, np.arange(7), 7, shuffle=False).tolist() == list(range(7))
    for position, size in ((7, 7), (-1, 7), (0, 0)):
        with pytest.raises(IndexError):
            sample_at(0, 0, 0, position, size)


def test_seeds_differ_in_every_argument():
    seeds = sample_seed(0, 0, np.repeat(np.arange(40), 500), np.tile(np.arange(500), 40))
    assert len(set(seeds.tolist())) == 20_000
    assert len({int(sample_seed(*key)) for key in [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 1)]}) == 6
    assert int(hash64(1, 2)) != int(hash64(2, 1)) != int(hash64(1, 2, 0))


def test_splitmix_matches_the_published_generator():
    """The first outputs of splitmix64 seeded with 1234567, as listed by its test vectors."""
    gamma, state = 0x9E3779B97F4A7C15, 1234567
    states = np.array([(state + gamma * i) % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_uniform_uncorrelated_and_addressable():
    seeds = sample_seed(0, 0, 0, np.arange(4000))
    draws = uniforms(seeds, 8)
    assert 0 <= draws.min() and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 4 * (1 / 12 / 4000) ** 0.5
    assert np.abs(np.corrcoef(np.concatenate([draws, uniforms(seeds, 8, stream=1)], 1).T) - np.eye(16)).max() < 4.5 / 4000**0.5
    assert np.array_equal(uniforms(seeds, 3, start=5), draws[:, 5:])
    assert np.array_equal(uniform_at(seeds, np.full(4000, 2)), draws[:, 2])
    assert np.array_equal(uniforms(seeds[7:9], 8), draws[7:9])


def test_no_global_generator_moves():
    import random

    import torch

    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    uniforms(sample_seed(0, 0, 0, np.arange(5)), 4)
    assert before == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())
