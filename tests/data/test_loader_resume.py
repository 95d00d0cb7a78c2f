"""Where a run stands, and what may change when it goes on: ranks, workers and micro-batches, but nothing that
makes up the order.
"""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from data.shard_files import PIECES, pair_members, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.config import Config, DataConfig, SourceConfig, TrainingConfig, WeightChange
from flava_ds.data.loader import StepLoader
from flava_ds.errors import CheckpointError
from flava_ds.storage.index import load_indexes
from flava_ds.storage.index_files import index_files


@pytest.fixture(scope="module")
def loader_of(tmp_path_factory):
    """Returns a function that builds a rank's loader over pairs (23), images (10) and text (17), each
    combination once.
    """
    folder = tmp_path_factory.mktemp("order")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    counts = {"pair": 23, "image": 10, "text": 17}
    for kind, count in counts.items():
        write_tar(folder / f"{kind}.tar", pair_members(range(count)))

    @functools.cache
    def build(rank, world_size, accumulation, block_size, block_steps):
        shares = zip(counts, (0.6, 0.2, 0.2), strict=True)
        sources = {
            kind: SourceConfig(kind=kind, shards=str(folder / f"{kind}.tar"), weight=share)
            for kind, share in shares
        }
        sources["text"] = replace(sources["text"], global_batch_size=16)
        data = {
            "shuffle_block_size": block_size,
            "shuffle_window_blocks": 2,
            "block_steps": block_steps,
            "vocabulary": str(folder / "vocab.txt"),
        }
        training = TrainingConfig(
            total_steps=100, global_batch_size=8, gradient_accumulation_steps=accumulation
        )
        return StepLoader(
            Config(name="x", data=DataConfig(sources=sources, **data), training=training), rank, world_size
        )

    return build


def test_state_is_json_and_accepts_itself_at_any_step(make_config):
    loader = StepLoader(make_config())
    for step in (0, 7, 12):
        loader.start_step = step
        state = json.loads(json.dumps(loader.state(step)))
        loader.check_state(state)
        draws = [loader.round_robin.source_at(s) for s in range(step)].count("pairs")
        assert (state["pairs"]["epoch"], state["pairs"]["position"]) == divmod(draws * 8, 23)


CHANGES = {
    "seed": "seed was 0, is 3",
    "weight": "source 'pairs': weight was 3/5 from step 0, is 7/11 from step 0",
    "schedule": "source 'text': weight was 1/5 from step 0, is 1/5 from step 0, 0 from step 4",
    "kinds": "source 'images': weight was 1/5 from step 0, is 1/2 from step 0",
    "global_batch_size": "global_batch_size was 8, is 4",
    "block_steps": "block_steps was 1, is 2",
    "shuffle": "order was full shuffle, is shard order",
    "block": "order was full shuffle, is shuffle of blocks of 4 in windows of 1024 blocks",
    "samples": "source 'pairs': samples was 23, is 25",
    "shards": "source 'pairs': keys was",
    "source": "source 'text' is gone",
    "source_seed": r"source 'pairs': source_seed was 0 \(--data.sources.pairs.seed 0 keeps it\), is \d{5,}",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_that_would_change_the_data_order_is_refused(make_config, make_shard, change):
    config = make_config()
    saved = StepLoader(config).state(5)
    sources = config.data.sources
    if change == "samples":
        make_shard("pairs/2.tar", pair_members(range(50, 52)))
    if change == "shards":
        make_shard("pairs/1.tar", pair_members(range(50, 60)))
    changed = {
        "seed": lambda: replace(config, seed=3),
        "weight": lambda: config.with_sources(sources | {"pairs": replace(sources["pairs"], weight=0.7)}),
        "global_batch_size": lambda: replace(config, training=replace(config.training, global_batch_size=4)),
        "block_steps": lambda: replace(config, data=replace(config.data, block_steps=2)),
        "shuffle": lambda: replace(config, data=replace(config.data, shuffle=False)),
        "block": lambda: replace(config, data=replace(config.data, shuffle_block_size=4)),
        "schedule": lambda: replace(
            config, data=replace(config.data, weight_changes=(WeightChange(step=4, weights={"text": 0.0}),))
        ),
        "kinds": lambda: replace(
            config, data=replace(config.data, kind_weights={"pair": 0.25, "image": 0.5, "text": 0.25})
        ),
        "samples": lambda: config,
        "shards": lambda: config,
        "source": lambda: config.with_sources({name: sources[name] for name in ("pairs", "images")}),
        "source_seed": lambda: config.with_sources(sources | {"pairs": replace(sources["pairs"], seed=None)}),
    }[change]()
    with pytest.raises(CheckpointError, match=CHANGES[change]):
        StepLoader(changed, start_step=5).check_state(saved)


def test_a_renamed_source_goes_on_with_its_old_seed(make_config):
    config = make_config(training={"total_steps": 12})
    sources = dict(config.data.sources)
    before = StepLoader(config)
    keys = [batch.keys for (batch,) in before]
    state = json.loads(json.dumps(before.state(5)))
    texts = sources.pop("text")
    renamed = config.with_sources({"glosses": replace(texts, seed=None), **sources})
    seed = state["text"]["source_seed"]
    with pytest.raises(
        CheckpointError, match=rf"'text' is gone \(if it is renamed, --data.sources.glosses.seed {seed} keeps"
    ):
        StepLoader(renamed, start_step=5).check_state(state)
    loader = StepLoader(config.with_sources({"glosses": replace(texts, seed=seed), **sources}), start_step=5)
    loader.check_state(state)
    assert [batch.keys for (batch,) in loader] == keys[5:]


def test_weights_may_change_and_sources_begin_from_the_step_of_the_checkpoint_on(make_config, make_shard):
    """Nothing that the run has drawn is another: a whole run of the new plan is the same until then."""
    config = make_config(training={"total_steps": 20})
    make_shard("more/0.tar", pair_members(range(60, 80)))
    sources = config.data.sources
    more = replace(
        sources["pairs"], shards=sources["pairs"].shards.replace("pairs", "more"), weight=0.0, seed=7
    )
    changes = (WeightChange(step=6, weights={"text": 0.0, "more": 1.0}),)
    data = replace(config.data, sources={**sources, "more": more}, weight_changes=changes)
    changed = replace(config, data=data)
    before, after = StepLoader(config), StepLoader(changed)
    keys = [batch.keys for (batch,) in before][:6] + [batch.keys for (batch,) in after][6:]
    assert [batch.keys for (batch,) in StepLoader(changed)] == keys
    resumed = StepLoader(changed, start_step=6)
    resumed.check_state(json.loads(json.dumps(before.state(6))))
    assert [batch.keys for (batch,) in resumed] == keys[6:]
    assert any("more" == batch.source for (batch,) in StepLoader(changed, start_step=6))
    StepLoader(config, start_step=6).check_state(after.state(6))  # planned, and not begun
    for saved, late in ((before, changed), (after, config)):
        loader = StepLoader(late, start_step=7)
        with pytest.raises(
            CheckpointError, match="'text': weight was .*from step 7 on, a recipe.* data.weight_"
        ):
            loader.check_state(saved.state(7))


def test_a_run_that_jumped_over_data_counts_what_it_has_passed(make_config):
    """Three steps back, the data of seven steps on: weights may change from there."""
    config = make_config(training={"total_steps": 30})
    saved = StepLoader(config)
    saved.go_back(5, 12)

    def with_change(step):
        changes = (WeightChange(step=step, weights={"text": 0.0}),)
        return StepLoader(replace(config, data=replace(config.data, weight_changes=changes)), start_step=8)

    with_change(15).check_state(saved.state(8))
    with pytest.raises(CheckpointError, match="from step 15 on"):
        with_change(14).check_state(saved.state(8))


def rewritten(make_shard, checksum, changed):
    """Writes the shards of pairs again, with a change of each sample's members; returns a fresh state."""
    for name, numbers in (("pairs/0.tar", range(13)), ("pairs/1.tar", range(13, 23))):
        path = make_shard(name, [changed(member, data) for member, data in pair_members(numbers)])
        index_files(path)[0].unlink(missing_ok=True)
        list(load_indexes([path], checksum=checksum))


@pytest.mark.parametrize(
    ("checksum", "changed", "words"),
    [
        (False, lambda n, d: (n, d + b" " if n.endswith("json") else d), "sizes and places of its members"),
        (
            False,
            lambda n, d: (n, d.replace(b"a", b"o") if n.endswith("json") else d),
            "the bytes of 8 of its",
        ),
        (True, lambda n, d: (n, d[:-1] + b"!" if n == "000000001.webp" else d), "the sha256 of its shards"),
    ],
)
def test_other_contents_under_the_same_keys_are_refused(make_config, make_shard, checksum, changed, words):
    """Keys agree, so the order would: only what the samples are differs."""
    config = make_config()
    rewritten(make_shard, checksum, lambda name, data: (name, data))
    before = StepLoader(config)
    saved = json.loads(json.dumps(before.state(5)))
    StepLoader(config, start_step=5).check_state(saved)
    rewritten(make_shard, checksum, changed)
    now = StepLoader(config, start_step=5)
    with pytest.raises(CheckpointError, match=f"not those that the checkpoint was trained on: .*{words}"):
        now.check_state(saved)
    assert before.sources["pairs"].seen() != now.sources["pairs"].seen()


def test_what_one_side_does_not_know_of_the_contents_is_no_difference(make_config, make_shard, caplog):
    """A checksum that an index has got since, and a reader of one's own that says of its contents since."""
    config = make_config()
    saved = json.loads(json.dumps(StepLoader(config).state(5)))
    assert "places of its members, bytes of 8 of its samples (`flava-ds prepare index` adds" in caplog.text
    rewritten(make_shard, True, lambda name, data: (name, data))
    with_checksums = StepLoader(config, start_step=5)
    with_checksums.check_state(saved)
    assert "sha256 of its shards, bytes" in caplog.text
    for state in saved.values():
        del state["content"]
    with_checksums.check_state(saved)


def test_accumulation_and_world_size_may_change_on_resume(make_config):
    saved = StepLoader(make_config()).state(5)
    loader = StepLoader(
        make_config(data={"num_workers": 3}, training={"gradient_accumulation_steps": 2}), 1, 2, start_step=5
    )
    loader.check_state(saved)
    assert loader.state(5) == saved


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 30),
    split=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 8), (4, 2), (8, 1)]),
    block_size=st.sampled_from([1, 3]),
    block_steps=st.sampled_from([1, 2]),
)
def test_any_ranks_and_accumulation_from_any_step_read_the_positions_of_one_stream(
    loader_of, start, split, block_size, block_steps
):
    """The samples of step s are the next global batch of its source's stream, whoever reads them, and each
    epoch of it has every sample once.
    """
    world_size, accumulation = split
    loaders = [
        loader_of(rank, world_size, accumulation, block_size, block_steps) for rank in range(world_size)
    ]
    sizes = {"pair": 8, "image": 8, "text": 16}
    taken = {name: loaders[0].round_robin.draws_before(name, start) * size for name, size in sizes.items()}
    for step in range(start, start + 12):
        requests = [
            loaders[rank].requests(step)[micro] for micro in range(accumulation) for rank in range(world_size)
        ]
        (name,) = {request.source for request in requests}
        positions = np.concatenate(
            [np.arange(request.position, request.position + request.size) for request in requests]
        )
        assert positions.tolist() == list(range(taken[name], taken[name] + sizes[name]))
        taken[name] += sizes[name]
        source = loaders[0].sources[name]
        indices, _, _ = loaders[0].readers[name].draws().locate(positions)
        assert indices.tolist() == [
            int(source.order.at(p // len(source), p % len(source))) for p in positions.tolist()
        ]
    for source in loaders[0].sources.values():
        assert sorted(source.order.at(3, np.arange(len(source))).tolist()) == list(range(len(source)))


def test_resuming_at_every_position_of_a_small_source_goes_on_in_its_order(make_config):
    """One sample a step: every place of three epochs of 17 is a place to stop at."""
    text = replace(make_config().data.sources["text"], global_batch_size=1)
    config = make_config(
        data={"sources": {"text": text}, "shuffle_block_size": 3, "shuffle_window_blocks": 2},
        training={"total_steps": 51},
    )
    whole = StepLoader(config)
    keys = [batch.keys[0] for (batch,) in whole]
    assert all(len(set(keys[epoch : epoch + 17])) == 17 for epoch in (0, 17, 34))
    for start in range(51):
        resumed = StepLoader(config, start_step=start)
        resumed.check_state(whole.state(start))
        assert (resumed.state(start)["text"]["epoch"], resumed.state(start)["text"]["position"]) == divmod(
            start, 17
        )
        assert next(iter(resumed))[0].keys[0] == keys[start]


def test_weights_that_change_on_the_way_are_drawn_from_their_step_on(make_config):
    changes = (
        WeightChange(step=10, weights={"pairs": 0.0, "images": 0.0, "text": 1.0}),
        WeightChange(step=16, weights={"pairs": 1.0, "images": 1.0, "text": 0.0}),
    )
    config = make_config(data={"weight_changes": changes}, training={"total_steps": 30})
    sources = [batch.source for (batch,) in StepLoader(config)]
    assert [sources[:10].count(name) for name in ("pairs", "images", "text")] == [6, 2, 2]
    assert (
        sources[10:16] == ["text"] * 6
        and sorted(sources[16:18]) == ["images", "pairs"]
        and "text" not in sources[16:]
    )
    assert [batch.keys for (batch,) in StepLoader(config, start_step=13)] == [
        batch.keys for (batch,) in StepLoader(config)
    ][13:]
