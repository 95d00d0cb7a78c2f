"""The first rank of a machine looks at shards and indexes for all ranks of it."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from data.shard_files import pair_members

from flava_ds.build import build_loader, prepare_shards
from flava_ds.data.indexed import IndexedShards
from flava_ds.errors import DataError
from flava_ds.ranks.distributed import from_this_machine, start
from flava_ds.storage import index, sample_table
from flava_ds.storage.shards import list_shards

LOOKS = ("stamps_of", "index_states", "load_indexes")

pytestmark = pytest.mark.usefixtures("own_cache")


def count_looks(monkeypatch) -> list[str]:
    """Returns a list to which names of functions that look at shards or indexes will be added."""
    looks: list[str] = []
    for name in LOOKS:
        real = getattr(sample_table, name)
        look = lambda *a, name=name, real=real, **k: looks.append(name) or real(*a, **k)  # noqa: E731
        monkeypatch.setattr(sample_table, name, look)
    return looks


@pytest.fixture
def pattern(make_config, monkeypatch):
    """A configuration whose pairs are a pattern of two shards, with a table of their own."""
    monkeypatch.setattr(sample_table, "STORED_FROM", 2)
    config = make_config()
    source = config.data.sources["pairs"]
    source = replace(source, shards=f"{source.shards}/{{0..1}}.tar", weight=1.0, global_batch_size=6)
    return config.with_sources({"pairs": source})


def test_with_the_folder_of_a_table_nothing_else_is_looked_at(pattern, monkeypatch):
    held = IndexedShards(pattern, "pairs").table
    folders = prepare_shards(pattern)
    assert list(folders) == ["pairs"] and folders["pairs"].is_dir()
    looks = count_looks(monkeypatch)
    for shard in held.shards:
        assert isinstance(shard, Path)
        shard.rename(shard.with_suffix(".away"))
    stored = IndexedShards(pattern, "pairs", table=folders["pairs"]).table
    assert not looks and (stored.shards, stored.stamps) == (held.shards, held.stamps)
    assert (stored.fingerprint, stored.layout) == (held.fingerprint, held.layout)


def test_a_shard_that_comes_or_goes_meanwhile_is_told(pattern, make_shard):
    source = pattern.data.sources["pairs"]
    config = pattern.with_sources({"pairs": replace(source, shards=str(Path(source.shards).parent))})
    table = prepare_shards(config)["pairs"]
    before = len(IndexedShards(config, "pairs", table=table).table.shards)
    added = make_shard("pairs/9.tar", pair_members(range(90, 95)))
    for now in (before + 1, before - 1):
        with pytest.raises(DataError, match=f"are {now}, and were {before} a moment ago: leave them alone"):
            IndexedShards(config, "pairs", table=table)
        added.unlink(missing_ok=True)
        (added.parent / "1.tar").unlink(missing_ok=True)


def test_a_folder_without_its_table_is_no_reason_to_believe_in_the_shards(pattern, make_shard):
    folders = prepare_shards(pattern)
    (folders["pairs"] / "table.json").unlink()
    assert len(IndexedShards(pattern, "pairs", table=folders["pairs"])) == 23
    make_shard("pairs/0.tar", pair_members(range(5)))
    assert len(IndexedShards(pattern, "pairs", table=folders["pairs"])) == 15
    Path(list_shards(pattern.data.sources["pairs"].shards)[1]).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        IndexedShards(pattern, "pairs", table=folders["pairs"])


def open_as(config, cache: str, hosts: list[str], local_ranks: list[int]) -> tuple[list[str], str, int]:
    """Builds a rank's loader on a machine of that name; returns its looks, and what its source is."""
    os.environ["XDG_CACHE_HOME"] = cache
    sample_table.STORED_FROM = 2
    index._WORTH_A_PROCESS = 2**62
    world = start(30)
    socket.gethostname = lambda: hosts[world.rank]
    with pytest.MonkeyPatch.context() as patch:
        looks = count_looks(patch)
        loader = build_loader(config, replace(world, local_rank=local_ranks[world.rank]), 0, None)
    table = loader.sources["pairs"].table
    return looks, table.fingerprint, len(table)


@pytest.mark.distributed
def test_one_rank_of_each_machine_looks_at_shards(run_ranks, pattern, tmp_path):
    given = (pattern, str(tmp_path / "of ranks"), ["a", "b", "a"], [0, 0, 1])
    (first, *one), (other, *two), (last, *three) = run_ranks(open_as, 3, *given)
    assert {"stamps_of", "index_states"} <= set(first) and {"stamps_of", "index_states"} <= set(other)
    assert last == [] and one == two == three and one[1] == 23


def tell(values: list[str | None], hosts: list[str]) -> str | None:
    """Passes a rank's value on a machine of that name."""
    world = start(30)
    socket.gethostname = lambda: hosts[world.rank]
    return from_this_machine(world, values[world.rank])


@pytest.mark.distributed
def test_a_value_reaches_the_ranks_of_its_machine(run_ranks):
    values = ["of 0", None, None, "of 3"]
    assert run_ranks(tell, 4, values, ["a", "b", "a", "b"]) == ["of 0", "of 3", "of 0", "of 3"]
    assert run_ranks(tell, 2, ["of 0", None], ["a", "b"]) == ["of 0", None]
