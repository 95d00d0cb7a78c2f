"""What every source is tested for, whether it is ours or defined elsewhere: `assert_contract(config, name,
keys)`.

A source of another package is tested by giving its class as `build`; the configuration then only has to name
it.
"""

import json
import pickle
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import Lane, open_source

LANES = (Lane(), Lane(ranks=2, each=1), Lane(ranks=2, each=2))
"""Topologies under test: one lane, two ranks, and two ranks of two loader processes."""


def assert_contract(config, name, keys, build=open_source):
    """Fails unless source `name` keeps what data/sources.py promises. `keys` are those of all its samples,
    each of which is usable.
    """
    source = build(config, name)
    assert (source.name, source.kind, source.source) == (
        name,
        config.data.sources[name].kind,
        config.data.sources[name],
    )
    assert isinstance(source.seed, int) and (source.length is None or source.length == len(keys))
    for facts in (source.state, source.seen):
        assert json.loads(json.dumps(facts())) == facts() == getattr(build(config, name), facts.__name__)()
    for topology in LANES:
        assert all(line.isprintable() and f"'{name}'" in line for line in source.notes(topology))
        lanes = [
            replace(topology, rank=index // topology.each, number=index % topology.each)
            for index in range(topology.total)
        ]
        assert_order(source, lanes if not source.promises.elastic else lanes[:1], keys)
    assert_elsewhere(source, keys)
    assert_nothing_global_moves(source)
    if source.kind == "pair":
        assert_partners(source)


def read(source, lane, positions):
    """Samples at `positions`, and the epoch of each, of a source that is opened anew."""
    skips, found = SkipLog(source.name, 0.0), []
    for sample in source.open(lane).samples(np.asarray(positions), skips):
        found.append((sample, skips.epoch))
    assert len(found) == len(positions) and not skips.take_counts()
    return found


def assert_order(source, lanes, keys):
    """Every epoch of all lanes together has every sample once, and another order when it is shuffled; lanes
    may end it at different positions.
    """
    length = 3 * len(keys)
    seen, orders = {0: Counter(), 1: Counter()}, {0: [], 1: []}
    for lane in lanes:
        for sample, epoch in (
            read(source, lane, range(length))
            if not source.promises.elastic
            else by_position(source, lane, length)
        ):
            if epoch in seen:
                seen[epoch][sample.key] += 1
                orders[epoch].append((sample.key, sample.seed))
    assert seen[0] == seen[1] == Counter(keys), (seen, keys)
    assert {key for key, _ in orders[0]} and not {seed for _, seed in orders[0]} & {
        seed for _, seed in orders[1]
    }
    if source.config.data.shuffle and len(keys) > 8:
        assert [key for key, _ in orders[0]] != [key for key, _ in orders[1]]


def by_position(source, lane, length):
    """Samples with the epoch that their position lies in, of a source that knows its length."""
    return [
        (sample, position // source.length)
        for position, (sample, _) in enumerate(read(source, lane, range(length)))
    ]


def same(left, right):
    """Tells whether two samples are equal in everything."""
    pixels = (left.image is None and right.image is None) or torch.equal(left.image, right.image)
    return pixels and replace(left, image=None, codes=None) == replace(right, image=None, codes=None)


def assert_elsewhere(source, keys):
    """What stands at a position does not depend on what was read before, on the process, or on the copy of
    the source.
    """
    lane, length = Lane(ranks=2, rank=1), 2 * len(keys) + 3
    whole = [sample for sample, _ in read(source, lane, range(length))]
    for start in sorted({0, 1, len(keys) // 2, len(keys) - 1, len(keys), len(keys) + 1, 2 * len(keys)}):
        later = [sample for sample, _ in read(pickle.loads(pickle.dumps(source)), lane, range(start, length))]
        assert all(same(ours, theirs) for ours, theirs in zip(later, whole[start:], strict=True)), start
    draws, skips = source.open(lane), SkipLog(source.name, 0.0)
    # on, ahead, back, and the same again
    for start, count in ((0, 3), (3, 4), (len(keys) + 1, 2), (2, 3), (2, 1)):
        assert all(
            same(ours, theirs)
            for ours, theirs in zip(
                draws.samples(np.arange(start, start + count), skips), whole[start:], strict=False
            )
        )


def assert_nothing_global_moves(source):
    """Nothing is drawn from Python's, numpy's or torch's own generators."""
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    read(source, Lane(), range(6))
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )


def assert_partners(source):
    """A caption that may be borrowed is another sample's, of the same global batch, or micro-batch where
    captions are not pooled.
    """
    draws, positions, rows = source.open(Lane()), np.arange(4), np.arange(4)
    batch = list(draws.samples(positions, SkipLog(source.name, 0.0)))
    lent = [list(texts) for texts in draws.partners(positions, rows, np.array([0.0, 0.3, 0.6, 0.99]), batch)]
    size = source.config.global_batch_size(source.name)
    lenders = [
        sample.text
        for sample, _ in read(source, Lane(), range(size if source.promises.pooled_captions else 4))
    ]
    for row, texts in enumerate(lent):
        assert sorted(texts) == sorted(text for place, text in enumerate(lenders) if place != row)
    again = [list(texts) for texts in draws.partners(positions, rows[1:3], np.array([0.3, 0.6]), batch)]
    assert again == lent[1:3]
