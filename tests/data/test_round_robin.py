"""The schedule keeps its ratios at every prefix, also when the weights change."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.config import DataConfig, SourceConfig, WeightChange
from flava_ds.data.order import source_seed
from flava_ds.data.round_robin import Rotation, RoundRobin, weight_stages
from flava_ds.errors import ConfigError

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(0.001, 100.0)), min_size=1, max_size=7).filter(
    lambda weights: sum(weights) > 0
)


def shares(weights):
    """The share of each source, which is called by its place."""
    exact = [Fraction(str(weight)) for weight in weights]
    return {str(number): weight / sum(exact) for number, weight in enumerate(exact)}


def numbered(stages, block_steps=1, seed=0):
    """A schedule of sources whose seeds are their places."""
    return RoundRobin(stages, {name: int(name) for name in stages[0][1]}, block_steps, seed)


def one_stage(weights, block_steps=1, seed=0):
    return numbered([(0, shares(weights))], block_steps, seed)


def data(kinds, weights=None, **fields):
    weights = weights or [1.0] * len(kinds)
    sources = {
        f"{n}": SourceConfig(kind=kind, shards="x", weight=weight)
        for n, (kind, weight) in enumerate(zip(kinds, weights, strict=True))
    }
    return DataConfig(sources=sources, **fields)


def sized(sizes):
    """The samples of each source, which is called by its place."""
    return {str(number): size for number, size in enumerate(sizes)}


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.integers(0, 1000))
def test_every_prefix_is_within_one_block_of_the_target(weights, seed):
    schedule = one_stage(weights, 1, seed)
    drawn = np.array([int(schedule.source_at(step)) for step in range(1500)])
    counts = np.cumsum(drawn[:, None] == np.arange(len(weights)), 0)
    target = np.arange(1, 1501)[:, None] * (np.array(weights) / sum(weights))
    assert np.abs(counts - target).max() < 1 + 1e-9


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(1, 7), st.integers(0, 9), st.integers(0, 300))
def test_draws_before_counts_and_blocks_hold_together(weights, block_steps, seed, step):
    schedule = one_stage(weights, block_steps, seed)
    drawn = [schedule.source_at(s) for s in range(step + 1)]
    for source in map(str, range(len(weights))):
        assert schedule.draws_before(source, step) == drawn[:step].count(source)
    assert all(drawn[s] == drawn[s - s % block_steps] for s in range(step + 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(1, 60), max_size=4), st.data())
def test_changes_of_weights_keep_every_stage_within_one_block_and_every_count_exact(
    count, block_steps, lengths, data
):
    of_count = st.lists(
        st.one_of(st.just(0.0), st.floats(0.001, 100.0)), min_size=count, max_size=count
    ).filter(lambda w: sum(w) > 0)
    firsts = np.cumsum([0, *lengths]).tolist()
    stages = [(first * block_steps, shares(data.draw(of_count))) for first in firsts]
    schedule = numbered(stages, block_steps, seed=3)
    steps = (firsts[-1] + 50) * block_steps
    drawn = np.array([int(schedule.source_at(step)) for step in range(steps)])
    for (first, weights), last in zip(stages, [*(first for first, _ in stages[1:]), steps], strict=True):
        counts = np.cumsum(drawn[first:last:block_steps, None] == np.arange(count), 0)
        target = np.arange(1, len(counts) + 1)[:, None] * np.array(
            [float(weight) for weight in weights.values()]
        )
        assert np.abs(counts - target).max() < 1 + 1e-9
        assert all(weights[str(source)] for source in drawn[first:last])
    for step in data.draw(st.lists(st.integers(0, steps - 1), max_size=5)):
        assert [schedule.draws_before(str(source), step) for source in range(count)] == [
            int((drawn[:step] == source).sum()) for source in range(count)
        ]


def test_far_steps_first_or_last_give_the_same_schedule():
    jump, walk = one_stage([0.7, 0.15, 0.15], 1, 5), one_stage([0.7, 0.15, 0.15], 1, 5)
    steps = (60_000, 3, 9_999, 41_000)
    walked = [walk.source_at(step) for step in range(60_001)]
    assert [jump.source_at(step) for step in steps] == [walked[step] for step in steps]
    assert jump.draws_before("0", 60_000) == 42_000 == walked[:60_000].count("0")


def test_the_paper_ratios_over_a_period_and_the_seed_decides_ties():
    schedules = [one_stage([0.7, 0.15, 0.15], 1, seed) for seed in range(8)]
    for schedule in schedules:
        assert [schedule.draws_before(source, 20) for source in "012"] == [14, 3, 3]
    assert len({tuple(schedule.source_at(step) for step in range(40)) for schedule in schedules}) > 1


def test_the_schedule_of_one_stage_has_not_changed():
    """Numbers of an earlier version: runs repeat, and resume."""
    assert (
        "".join(one_stage([0.7, 0.15, 0.15], 1, 7).source_at(step) for step in range(20))
        == "00010200020010002010"
    )


def test_a_rotation_keeps_few_chunks():
    rotation = Rotation(shares([0.7, 0.15, 0.15]), {"0": 0, "1": 1, "2": 2}, seed=0, first_block=0)
    for block in range(0, 100_000, 50):
        rotation.source_at(block)
    assert len(rotation._chunks) == 4 and len(rotation._starts) == 99


def test_weights_are_shares_among_all_sources_or_within_a_kind_or_by_size():
    kinds, sizes = ["pair", "pair", "image", "text"], sized([100, 300, 50, 1000])
    assert weight_stages(data(kinds, [3, 1, 2, 2]), sizes) == [(0, shares([3, 1, 2, 2]))]
    within = weight_stages(
        data(kinds, [3, 1, 2, 2], kind_weights={"pair": 0.7, "image": 0.2, "text": 0.1}), sizes
    )
    assert within == [(0, shares([0.525, 0.175, 0.2, 0.1]))]
    by_size = weight_stages(
        data(kinds, [1, 1, 5, 1], kind_weights={"pair": 0.7, "image": 0.2, "text": 0.1}, weigh_by_size=True),
        sizes,
    )
    assert by_size == [(0, shares([0.175, 0.525, 0.2, 0.1]))]
    twice_the_first = weight_stages(data(["pair", "pair"], [2, 1], weigh_by_size=True), sized([100, 300]))
    assert twice_the_first == [(0, {"0": Fraction(2, 5), "1": Fraction(3, 5)})]


def test_changes_keep_what_they_do_not_set():
    changes = (
        WeightChange(step=10, weights={"0": 0.0}),
        WeightChange(step=20, kind_weights={"image": 0.0, "text": 0.0}),
    )
    kind_weights = {"pair": 0.5, "image": 0.25, "text": 0.25}
    described = data(
        ["pair", "pair", "image", "text"], [3, 1, 1, 1], kind_weights=kind_weights, weight_changes=changes
    )
    stages = weight_stages(described, sized([1] * 4))
    assert stages == [
        (0, shares([0.375, 0.125, 0.25, 0.25])),
        (10, shares([0, 0.5, 0.25, 0.25])),
        (20, shares([0, 1, 0, 0])),
    ]


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(["a", "b", "c"]),
    st.lists(st.sampled_from(["0", "aa", "x", "zz"]), unique=True, max_size=3),
    st.integers(0, 99),
)
def test_neither_the_order_of_sources_nor_idle_ones_change_the_schedule(names, idle, seed):
    """By their names' hashes, and by seeds that stay when the sources are called otherwise."""
    exact = {"a": Fraction(3, 5), "b": Fraction(1, 5), "c": Fraction(1, 5)}
    seeds = {name: source_seed(name, None) for name in [*exact, *idle]}

    def drawn(shares, seeds):
        schedule = RoundRobin([(0, shares)], seeds, 2, seed)
        return [schedule.source_at(step) for step in range(200)]

    plain = drawn(exact, seeds)
    assert drawn({name: Fraction(0) for name in idle} | {name: exact[name] for name in names}, seeds) == plain
    called = {"a": "zebra", "b": "b", "c": "apple"}
    renamed = drawn(
        {called[name]: exact[name] for name in exact}, {called[name]: seeds[name] for name in exact}
    )
    assert renamed == [called[name] for name in plain]


@pytest.mark.parametrize(
    ("weights", "fields", "message"),
    [
        ([0.0, 0.0], {}, "data.sources: weights .* must be non-negative"),
        ([1.0, -1.0], {}, "must be non-negative"),
        (
            [1.0, 1.0],
            {"weight_changes": (WeightChange(step=4, weights={"0": 0.0, "1": 0.0}),)},
            r"data.weight_changes\[0\]: weights",
        ),
        (
            [1.0, 1.0],
            {"kind_weights": {"pair": 0.7, "image": 0.15, "text": 0.15}},
            "kind_weights give text steps 0.15, but no source of that kind",
        ),
    ],
)
def test_unusable_weights_are_refused(weights, fields, message):
    with pytest.raises(ConfigError, match=message):
        weight_stages(data(["pair", "image"], weights, **fields), sized([1, 1]))
