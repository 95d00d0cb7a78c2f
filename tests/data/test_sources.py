"""Both kinds of source keep the contract, shuffled and in the order of the shards."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from data.shard_files import pair_members
from data.source_contract import assert_contract

from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader
from flava_ds.data.sources import open_source
from flava_ds.data.stream import StreamedShards
from flava_ds.errors import ConfigError

KEYS = {
    "pairs": [f"{n:09d}" for n in range(23)],
    "images": [str(n) for n in range(10)],
    "text": [str(n) for n in range(17)],
}


def reading(config, how, **changes):
    """The configuration with all its sources read in one way."""
    return config.with_sources(
        {name: replace(source, reading=how, **changes) for name, source in config.data.sources.items()}
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("how", ["indexed", "stream"])
@pytest.mark.parametrize("name", KEYS)
def test_the_contract(make_config, make_shard, how, name, shuffle):
    """Pairs lie in two shards of 13 and 10, the others in one: fewer than some topologies have lanes."""
    assert_contract(reading(make_config(data={"shuffle": shuffle}), how, shuffle_buffer=5), name, KEYS[name])


def test_the_contract_with_more_shards_than_lanes(make_config, make_shard):
    for number in range(6):
        make_shard(f"pairs/{number}.tar", pair_members(range(10 * number, 10 * number + 2 + number)))
    keys = [f"{10 * shard + n:09d}" for shard in range(6) for n in range(2 + shard)]
    for how in ("indexed", "stream"):
        assert_contract(reading(make_config(), how, shuffle_buffer=3), "pairs", keys)


def test_reading_chooses_the_implementation(make_config):
    config = make_config()
    assert isinstance(open_source(config, "pairs"), IndexedShards)
    assert isinstance(open_source(reading(config, "stream"), "pairs"), StreamedShards)


def test_a_reader_of_ones_own_is_told_what_it_lacks(make_config):
    config = make_config()
    whole = IndexedShards(config, "pairs")
    own = SimpleNamespace(build=lambda config, name: SimpleNamespace(name=name, kind="pair", open=None))
    lacking = config.with_sources({"pairs": replace(config.data.sources["pairs"], reader=own)})
    with pytest.raises(
        ConfigError, match="'pairs': .* lacks source, seed, promises, length, state, seen, notes;"
    ):
        open_source(lacking, "pairs")
    whole.open = lambda lane: SimpleNamespace(samples=None)
    with pytest.raises(
        ConfigError, match="'pairs': .* lacks partners; Draws in flava_ds/data/sources.py says"
    ):
        BatchReader(config, whole).draws()
