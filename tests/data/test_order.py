"""Order is a bijection and a pure function; uniform draws are uniform and independent of each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.data.order import Order, hash64, mix64, sample_seed, uniform_at, uniforms


def order(size, seed=0, source=0, **shuffle):
    return Order(seed=seed, source=source, size=size, **shuffle)


ORDERS = st.builds(
    order,
    st.integers(1, 3000),
    seed=st.integers(0, 2**40),
    source=st.integers(0, 5),
    block_size=st.one_of(st.just(1), st.integers(1, 400)),
    window_blocks=st.integers(1, 40),
)


@settings(max_examples=150, deadline=None)
@given(ORDERS, st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(order, epoch):
    assert np.array_equal(np.sort(order.at(epoch, np.arange(order.size))), np.arange(order.size))


@settings(max_examples=60, deadline=None)
@given(ORDERS, st.integers(0, 50), st.integers(1, 7), st.data())
def test_any_positions_together_agree_with_each_alone(order, epoch, count, data):
    positions = np.array([data.draw(st.integers(0, 3 * order.size - 1)) for _ in range(count)])
    together = order.at(epoch + positions // order.size, positions % order.size)
    assert together.tolist() == [
        int(order.at(epoch + p // order.size, p % order.size)) for p in positions.tolist()
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4000), st.integers(2, 200), st.integers(1, 10), st.integers(0, 99))
def test_a_window_reads_few_ranges_of_consecutive_samples(size, block_size, window_blocks, epoch):
    """No more ranges than its blocks, one for what is left over, and one where a block wraps round the end of
    the source.
    """
    blocks = order(size, block_size=block_size, window_blocks=window_blocks)
    width, placed = block_size * window_blocks, blocks.at(epoch, np.arange(size))
    for start in range(0, size, width):
        window = np.sort(placed[start : start + width])
        assert 1 + int((np.diff(window) > 1).sum()) <= min(window_blocks, -(-len(window) // block_size)) + 1


@pytest.mark.parametrize("shuffle", [{}, {"block_size": 4, "window_blocks": 3}])
def test_seed_source_and_epoch_each_give_another_order(shuffle):
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (31, 0, 0), (0, 0, 31), (0, 31, 0)]
    orders = {
        order(40, seed, source, **shuffle).at(epoch, np.arange(40)).tobytes() for seed, source, epoch in keys
    }
    assert len(orders) == 7


@pytest.mark.parametrize("shuffle", [{}, {"block_size": 3, "window_blocks": 2}])
def test_over_many_epochs_every_sample_stands_at_every_place_equally_often(shuffle):
    """Chi-squared with 399 degrees of freedom: 99.99 % below 514."""
    epochs = np.repeat(np.arange(4000), 20)
    placed = order(20, **shuffle).at(epochs, np.tile(np.arange(20), 4000)).reshape(4000, 20)
    counts = np.stack([np.bincount(placed[:, place], minlength=20) for place in range(20)])
    assert ((counts - 200) ** 2 / 200).sum() < 514


@pytest.mark.parametrize(("shuffle", "most"), [({}, 0.002), ({"block_size": 50, "window_blocks": 40}, 0.004)])
def test_neighbours_in_the_shards_are_not_neighbours_in_the_order(shuffle, most):
    """In a window of 40 blocks the chance of a sample's successor is 1/2000 a side: 0.0005 of the places,
    five standard deviations below 0.004.
    """
    assert np.mean(np.diff(order(10_000, **shuffle).at(0, np.arange(10_000))) == 1) < most


def test_the_blocks_of_a_window_come_from_all_over_the_source():
    """40 of 200 blocks chosen at random have about 8 neighbours among them; the chance of 20 is
    negligible."""
    placed = order(10_000, block_size=50, window_blocks=40).at(0, np.arange(10_000)).reshape(5, 2000)
    for window in np.sort(placed, axis=1):
        assert 1 + (np.diff(window) > 1).sum() > 20 and window[-1] - window[0] > 8000


def test_the_full_shuffle_has_not_changed():
    """Numbers of an earlier version: runs with the full shuffle repeat, and resume."""
    assert order(23, seed=7, source=2).at(5, np.arange(23)).tolist() == [
        1,
        0,
        6,
        21,
        15,
        9,
        12,
        5,
        19,
        16,
        14,
        22,
        2,
        17,
        18,
        11,
        7,
        10,
        8,
        4,
        3,
        20,
        13,
    ]


@pytest.mark.parametrize("shuffle", [{}, {"block_size": 1000, "window_blocks": 512}])
def test_a_large_corpus_needs_no_table(shuffle):
    large = order(4 * 10**9, **shuffle).at(3, np.array([0, 1, 2, 4 * 10**9 - 1]))
    assert len(set(large.tolist())) == 4
    assert 0 <= large.min() and large.max() < 4 * 10**9


def test_unshuffled_is_the_identity_and_positions_are_checked():
    assert order(7, shuffle=False).at(9, np.arange(7)).tolist() == list(range(7))
    for position, size in ((7, 7), (-1, 7), (0, 0)):
        for block_size in (1, 3):
            with pytest.raises(IndexError):
                order(size, block_size=block_size).at(0, position)


def test_an_order_says_what_it_is():
    assert [
        str(order(9, **fields))
        for fields in ({}, {"shuffle": False, "block_size": 3}, {"block_size": 3, "window_blocks": 8})
    ] == [
        "full shuffle",
        "shard order",
        "shuffle of blocks of 3 in windows of 8 blocks",
    ]


def test_seeds_differ_in_every_argument():
    seeds = sample_seed(0, 0, np.repeat(np.arange(40), 500), np.tile(np.arange(500), 40))
    assert len(set(seeds.tolist())) == 20_000
    assert (
        len(
            {
                int(sample_seed(*key))
                for key in [
                    (0, 0, 0, 1),
                    (0, 0, 1, 0),
                    (0, 1, 0, 0),
                    (1, 0, 0, 0),
                    (0, 0, 0, 0),
                    (0, 0, 0, 0, 1),
                ]
            }
        )
        == 6
    )
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
    assert (
        np.abs(np.corrcoef(np.concatenate([draws, uniforms(seeds, 8, stream=1)], 1).T) - np.eye(16)).max()
        < 4.5 / 4000**0.5
    )
    assert np.array_equal(uniforms(seeds, 3, start=5), draws[:, 5:])
    assert np.array_equal(uniform_at(seeds, np.full(4000, 2)), draws[:, 2])
    assert np.array_equal(uniforms(seeds[7:9], 8), draws[7:9])


def test_no_global_generator_moves():
    import random

    import torch

    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    uniforms(sample_seed(0, 0, 0, np.arange(5)), 4)
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )
