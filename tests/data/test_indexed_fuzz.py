"""2,000 damaged shards: no crash, no hang, and every sample is delivered as it was or counted under its
reason.
"""

import signal
from collections import Counter

import numpy as np
import pytest
import torch
from data.shard_files import caption, picture
from data.shard_mutations import END, RANDOM, SAMPLES, Mutation, known, members, places
from data.whole_sources import OF_A_SAMPLE

from flava_ds.config import SourceConfig
from flava_ds.data.decode import decode_image
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader
from flava_ds.errors import DataError
from flava_ds.storage import faults
from flava_ds.storage.faults import SampleFault
from flava_ds.storage.index import load_index

ROUNDS_OF_KNOWN, RANDOM_SHARDS, READ_AS_BATCHES = 15, 1400, 20
MOST_CPU_S = 10.0
"""Processor time for one shard of some kilobytes; a loop that never ends takes more."""


@pytest.fixture(scope="module")
def originals():
    """Picture and caption of every undamaged sample."""
    return {f"{n:09d}": (decode_image(picture(n)), caption(n)) for n in range(SAMPLES)}


@pytest.fixture
def limited():
    """Ends a test when processor time of MOST_CPU_S passes between two calls of what it returns."""

    def ring(*_):
        raise AssertionError(f"a shard took more than {MOST_CPU_S} s of processor time")

    before = signal.signal(signal.SIGPROF, ring)
    yield lambda: signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.fixture
def read_shard(make_config, tmp_path, limited):
    """Returns a function that reads a shard as a source: usable samples by key, faults of the index, faults
    of the samples.
    """
    plain, count = make_config(), 0

    def read(shard: bytes) -> tuple[dict, Counter, Counter]:
        nonlocal count
        count += 1
        limited()
        path = tmp_path / f"{count}.tar"
        path.write_bytes(shard)
        found, lost = {}, Counter()
        try:
            config = plain.with_sources(
                {"fuzz": SourceConfig(kind="pair", shards=str(path), max_skipped_share=1.0, max_tokens=24)}
            )
            source = IndexedShards(config, "fuzz")
        except DataError as error:
            assert "0 usable samples" in str(error) and "\n" not in str(error)
            return {}, faults_in(str(error)), lost
        for index in range(len(source)):
            try:
                sample = source.decode(source.read(index), index, seed=index)
                found[sample.key] = sample.image, sample.text
            except SampleFault as fault:
                lost[fault.reason] += 1
                assert str(fault).isprintable() and source.where(index).isprintable()
        assert len(found) + sum(lost.values()) == len(source) and set(lost) <= set(OF_A_SAMPLE)
        incomplete = sum(source.table.faults[reason] for reason in (faults.NO_IMAGE, faults.MISSING_CAPTION))
        assert len(source) + incomplete == len(load_index(path)), "every indexed key is usable or counted"
        if count % READ_AS_BATCHES == 0 and found:
            batch = BatchReader(config, source).batch(np.arange(8))
            assert batch.size == 8 and set(batch.keys) <= set(found)
        path.unlink()
        return found, +source.table.faults, lost

    return read


def faults_in(message: str) -> Counter:
    """Reads the counts out of what a source without samples says."""
    listed = message.split("not usable: ")[1].split(";")[0]
    return Counter(
        {entry.rpartition(" ")[0]: int(entry.rpartition(" ")[2]) for entry in listed.split(", ")}
        if listed != "none"
        else {}
    )


def same(ours, theirs) -> bool:
    return torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1]


def check(mutation: Mutation, originals, read_shard) -> None:
    """Compares what is read with what must be."""
    found, indexed, lost = read_shard(mutation.shard)
    contents = {f"{n:09d}" for n in mutation.good}
    delivered = {
        key for key, sample in originals.items() if any(same(sample, other) for other in found.values())
    }
    assert (len(found), delivered) == (len(contents), contents), mutation.name
    assert (indexed, lost) == (+mutation.indexed, +mutation.read), mutation.name


def test_an_undamaged_shard_is_read_whole(originals, read_shard):
    check(Mutation("none", b"".join([*members(), END])), originals, read_shard)


@pytest.mark.parametrize("seed", range(ROUNDS_OF_KNOWN))
def test_known_damage_has_exactly_its_consequences(originals, read_shard, seed):
    for mutation in known(np.random.default_rng(seed)):
        check(mutation, originals, read_shard)


@pytest.mark.parametrize("seed", range(7))
def test_random_damage_reaches_no_sample_outside_of_it(originals, read_shard, seed):
    """A sample whose members end before the damage is delivered as it was; one that begins after it is
    delivered as it was, or not at all.
    """
    random, at = np.random.default_rng([17, seed]), places().tolist()
    for _ in range(RANDOM_SHARDS // 7):
        shard = bytearray(b"".join([*members(), END]))
        start, end = RANDOM[int(random.integers(len(RANDOM)))](random, shard)
        found = read_shard(bytes(shard))[0]
        for n, (key, sample) in enumerate(originals.items()):
            before, after = at[2 * n + 2] <= start, at[2 * n] >= end
            if before or (after and key in found):
                assert key in found and same(found[key], sample), (start, end, key)


def test_there_are_2000_shards():
    assert ROUNDS_OF_KNOWN * len(list(known(np.random.default_rng(0)))) + RANDOM_SHARDS >= 2000
