"""Streams in the loader: ranks, loader processes, uneven ends, resume, faults, and what may run code."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.shard_files import caption, pair_members, picture, write_tar
from data.test_sources import reading

from flava_ds.config import UNCHANGED, load, save
from flava_ds.data import stream_draws
from flava_ds.data.loader import StepLoader
from flava_ds.data.quarantine import Quarantine, quarantine_file, read_quarantine
from flava_ds.data.skip_log import SkipLog
from flava_ds.data.sources import Lane, open_source
from flava_ds.errors import ConfigError, DataError
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.storage.shards import list_streamed


@pytest.fixture
def streams(make_config, make_shard):
    """Returns a function that builds the three sources as streams; pairs lie in eight shards of 2 to 9
    samples, 44 in all.
    """

    def build(workers=0, micro_steps=1, **training):
        for number in range(8):
            make_shard(f"pairs/{number}.tar", pair_members(range(10 * number, 10 * number + 2 + number)))
        training = {"gradient_accumulation_steps": micro_steps, "total_steps": 40} | training
        return reading(
            make_config(data={"num_workers": workers}, training=training), "stream", shuffle_buffer=4
        )

    return build


def run(config, rank=0, world_size=1, start=0):
    return list(StepLoader(config, rank, world_size, start))


def equal(ours, theirs):
    """Tells whether two lists of steps hold the same batches, bit by bit."""
    for left, right in zip(sum(ours, []), sum(theirs, []), strict=True):
        assert (left.source, left.keys) == (
            right.source,
            right.keys,
        ) and left.tensors.keys() == right.tensors.keys()
        assert all(torch.equal(left[name], right[name]) for name in left.tensors)
    return True


@pytest.mark.parametrize(("ranks", "workers", "micro_steps"), [(1, 0, 1), (2, 0, 2), (2, 2, 1), (1, 3, 2)])
def test_ranks_draw_one_source_a_step_and_each_lane_reads_its_samples_once_an_epoch(
    streams, ranks, workers, micro_steps
):
    config = streams(workers, micro_steps)
    steps = [run(config, rank, ranks) for rank in range(ranks)]
    schedule = StepLoader(config).round_robin
    assert all(
        [batch.source for batch in step] == [schedule.source_at(number)] * micro_steps
        for own in steps
        for number, step in enumerate(own)
    )
    lanes = max(1, workers)
    found = {}
    for rank, own in enumerate(steps):
        for number, batch in enumerate(batch for step in own for batch in step):
            if batch.source == "pairs":
                found.setdefault((rank, number % lanes), []).extend(batch.keys)
    assert len(found) == ranks * lanes
    owned = [set(keys) for keys in found.values()]
    assert sum(map(len, owned)) == len(set().union(*owned))  # a shard belongs to one lane
    for keys in found.values():
        counts = Counter(keys)
        assert max(counts.values()) - min(counts.values()) <= 1 and len(keys) > len(counts)


@pytest.mark.parametrize(("ranks", "workers", "micro_steps"), [(1, 0, 1), (2, 0, 2), (2, 2, 1), (1, 3, 2)])
@pytest.mark.parametrize("start", [1, 7, 26])
def test_a_resume_on_the_same_topology_goes_on_bit_by_bit(streams, ranks, workers, micro_steps, start):
    config, rank = streams(workers, micro_steps), ranks - 1
    whole = run(config, rank, ranks)
    saved = json.loads(json.dumps(StepLoader(config, rank, ranks).state(start)))
    loader = StepLoader(config, rank, ranks, start)
    loader.check_state(saved)
    assert equal(list(loader), whole[start:])


def test_a_lane_that_seeks_says_so_and_gives_signs_of_life(streams, monkeypatch, caplog):
    """Its next batch may be far beyond data.worker_timeout_s, for each sample that it passes over and, with
    fewer shards than lanes, for each shard. A lane that reads on gives none.
    """
    signs = []
    monkeypatch.setattr(stream_draws, "sign_of_life", lambda: signs.append(None))
    monkeypatch.setattr(stream_draws, "_FAR", 30)
    caplog.set_level("INFO")
    source = open_source(streams(), "pairs")

    def read(draws, position, count):
        return [sample.key for sample in draws.samples(np.arange(position, position + count), skips)]

    skips, draws = SkipLog("pairs", 0.0), source.open(Lane())
    whole = read(draws, 0, 130)
    assert not signs and not caplog.records
    draws = source.open(Lane())
    assert read(draws, 30, 2) == whole[30:32] and len(signs) >= 30 and not caplog.records
    assert read(draws, 63, 60) == whole[63:123]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and said[1] == "source 'pairs': stream 0 of 1 has reached its sample 63"
    assert said[0].startswith("source 'pairs': stream 0 of 1 seeks its sample 63, where the run goes on: ")
    assert "reads on from sample 32 without decoding" in said[0]
    signs.clear()
    read(source.open(Lane(ranks=40)), 1, 1)
    assert len(signs) > 8  # one for the sample, and one for each shard


def test_a_run_that_went_back_jumps_the_data_that_it_met(streams):
    config = streams(1)
    loader, whole = StepLoader(config), run(config)
    loader.go_back(4, 9)
    assert equal(list(loader)[:20], whole[9:29])


def test_another_topology_goes_on_with_a_word_and_other_settings_are_refused(streams, caplog):
    saved = StepLoader(streams(2)).state(9)
    StepLoader(streams(2), start_step=9).check_state(saved)
    assert "is now read by" not in caplog.text
    StepLoader(streams(1), 0, 2, 9).check_state(saved)
    assert (
        "read by 1 ranks x 2 loader processes x 1 micro-steps and is now read by 2 ranks x 1 loader "
        "processes x 1 micro-steps"
    ) in caplog.text
    from flava_ds.errors import CheckpointError

    with pytest.raises(
        CheckpointError, match="order was stream through a buffer of 4, is stream through a buffer of 5"
    ):
        StepLoader(reading(streams(2), "stream", shuffle_buffer=5), start_step=9).check_state(saved)


@pytest.mark.parametrize("change", ["added", "deleted"])
def test_a_stream_goes_on_from_changed_shards_with_a_word_and_exactly_from_then_on(
    streams, make_shard, caplog, change
):
    """From the same count of samples, as a run that has read the new shards from its start would."""
    config = streams(2)
    saved = json.loads(json.dumps(StepLoader(config).state(9)))
    if change == "added":
        make_shard("pairs/8.tar", pair_members(range(900, 911)))
    else:
        Path(config.data.sources["pairs"].shards, "3.tar").unlink()
    whole = run(config)
    loader = StepLoader(config, start_step=9)
    loader.check_state(saved)
    said = (
        r"source 'pairs' is a stream that was read from shards \w+ and is now read from shards \w+: the rest"
    )
    assert re.search(said, caplog.text)
    assert equal(list(loader), whole[9:])
    read = {key for batch in sum(whole[9:], []) if batch.source == "pairs" for key in batch.keys}
    assert ("000000900" in read) == (change == "added") and ("000000031" in read) == (change == "added")
    caplog.clear()
    again = StepLoader(config, start_step=15)
    again.check_state(loader.state(15))
    assert "is now read" not in caplog.text and equal(list(again), whole[15:])


def test_what_ranks_compare_of_a_stream_does_not_grow_with_its_shards(streams, make_shard):
    """Every rank receives it from every other one; a source may have 40,000 shards."""
    few = StepLoader(streams()).sources["pairs"].seen()
    assert few == StepLoader(streams(), 1, 2).sources["pairs"].seen()
    for number in range(8, 40):
        make_shard(f"pairs/{number}.tar", pair_members([1000 + number]))
    many = StepLoader(streams()).sources["pairs"].seen()
    assert many != few and len(repr(many)) == len(repr(few)) < 100


def test_what_a_stream_cannot_promise_is_said_once_and_too_few_shards_too(streams, caplog):
    StepLoader(streams(2), 0, 2)
    said = [record.getMessage() for record in caplog.records if "'pairs'" in record.getMessage()]
    assert (
        len(said) == 1
        and "8 shards read as streams by 2 ranks x 2 loader processes; the order is exact only for this"
        in said[0]
    )
    assert (
        "sources 'images', 'text', each: 1 shards are fewer than its 4 streams: each stream reads all shards "
        "and keeps every 4th" in caplog.text
    )
    caplog.clear()
    StepLoader(streams(2), 1, 2)
    assert not caplog.records


def test_mismatches_borrow_within_the_micro_batch(streams):
    config = streams(1, 2)
    config = replace(
        config, objectives={**config.objectives, "itm": ImageTextMatchingConfig(mismatch_probability=1.0)}
    )
    config = config.with_sources({"pairs": replace(config.data.sources["pairs"], caption_key=None)})
    tokenizer = StepLoader(config).readers["pairs"].plan.tokenizer
    for batch in sum(run(config), []):
        ends = batch["cu_seqlens"].tolist()
        texts = [
            tokenizer.decode(batch["input_ids"][a:b].tolist()) for a, b in zip(ends, ends[1:], strict=False)
        ]
        own = [
            tokenizer.decode(ids.tolist())
            for ids in tokenizer.encode_batch([caption(int(key)) for key in batch.keys], 24)
        ]
        assert not len(batch["matched_rows"]) and all(
            text in own and text != mine for text, mine in zip(texts, own, strict=True)
        )


def test_damage_is_counted_by_the_indexs_reasons_replaced_and_listed(streams, make_shard, tmp_path):
    members = pair_members(range(80, 92))
    members[3 * 4] = (members[3 * 4][0], b"no picture")
    members[3 * 7 + 2] = (members[3 * 7 + 2][0], b'{"captions": []}')
    del members[3 * 9]
    config = streams()
    shard = make_shard("pairs/7.tar", members)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512])  # without the zeros that end a tar
    config = config.with_sources({"pairs": replace(config.data.sources["pairs"], max_skipped_share=0.5)})
    loader = StepLoader(config)
    loader.quarantine = Quarantine(quarantine_file(tmp_path / "run", 0))
    batches = sum(loader, [])
    assert all(batch.size == len(batch.keys) == 8 for batch in batches)
    lost = {f"{number:09d}" for number in (84, 87, 89)}
    assert not lost & {key for batch in batches for key in batch.keys}
    entries = {(entry["key"], entry["reason"]) for entry in read_quarantine(tmp_path / "run")}
    assert entries == {
        ("000000084", "undecodable"),
        ("000000087", "missing caption"),
        ("000000089", "no image"),
        ("", "truncated shard"),
    }
    with open(shard, "rb") as file:
        file.seek(
            next(
                entry["offset"] for entry in read_quarantine(tmp_path / "run") if entry["key"] == "000000084"
            )
        )
        assert file.read(10) == b"no picture"
    assert equal(run(config, start=11), run(config)[11:])


@pytest.mark.parametrize("workers", [0, 1])
def test_too_much_damage_stops_a_run_and_so_does_a_stream_without_samples(
    streams, make_shard, tmp_path, workers
):
    config = streams(workers)
    for number in range(8):
        members = pair_members(range(10 * number, 10 * number + 9))
        make_shard(
            f"pairs/{number}.tar",
            [
                (name, b"RIFF" if name.endswith("webp") and int(name[:9]) % 3 == 0 else data)
                for name, data in members
            ],
        )
    with pytest.raises(
        DataError,
        match=(
            r"source 'pairs': \d+ of \d+ samples .* are unusable: undecodable "
            r"\d+.*--data.sources.pairs.max-skipped-share"
        ),
    ):
        run(config.with_sources({"pairs": config.data.sources["pairs"]}))
    write_tar(tmp_path / "images" / "0.tar", [("at 10.15.webp", picture(0))])
    said = r"source 'images': stream 0 of 1 finds no sample in 1 shards \(left out: suffix with a dot 1\)"
    with pytest.raises(DataError, match=said):
        run(config.with_sources({"images": config.data.sources["images"]}))


def test_a_pipe_runs_only_by_the_users_own_word(streams, tmp_path):
    plain = streams()
    command = f"pipe:cat {tmp_path}/pairs/{{0..7}}.tar"
    piped = plain.with_sources({"pairs": replace(plain.data.sources["pairs"], shards=command)})
    with pytest.raises(
        ConfigError,
        match=(
            "source 'pairs': a 'pipe:' command in shards would run code; .* pass "
            "--data.sources.pairs.allow-code"
        ),
    ):
        StepLoader(piped)
    allowed = piped.with_sources({"pairs": replace(piped.data.sources["pairs"], allow_code=True)})
    keys = [
        {key for batch in sum(run(config), []) if batch.source == "pairs" for key in batch.keys}
        for config in (allowed, plain)
    ]
    assert len(keys[0]) == 44 and keys[0] == keys[1]
    save(replace(allowed, schedule=replace(allowed.schedule, warmup_steps=1)), tmp_path / "config.json")
    with pytest.raises(ConfigError, match="would run code"):
        StepLoader(load(tmp_path / "config.json"))
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/ran\n")
    with pytest.raises(DataError, match="would run a shell command, which is not allowed"):
        list_streamed(str(tmp_path / "list.txt"), "x", pipes=True)
    failing = allowed.with_sources(
        {"pairs": replace(allowed.data.sources["pairs"], shards=f"pipe:cat {tmp_path}/pairs/0.tar; exit 3")}
    )
    with pytest.raises(DataError, match="the command exited with status 3"):
        run(failing)
    assert not (tmp_path / "ran").exists()


PIPELINE = """
from __future__ import annotations
import dataclasses, tarfile
@dataclasses.dataclass
class Format: suffix: str = ".webp"
def samples(part):
    for shard in part.shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(Format().suffix):
                    sample = {"webp": tar.extractfile(member).read(), "json": '{"captions": ["a cat"]}'}
                    yield {"__key__": member.name[:-5], "__url__": str(shard), **sample}
def broken(part): yield {"webp": b""}
def decoded(part):
    yield {"__key__": "a", "webp": [1, 2], "json": '{"captions": ["a cat"]}'}
def failing(part): raise OSError("no such bucket")
"""


def test_a_pipeline_of_the_users_own_is_read_in_its_order(streams, tmp_path):
    (tmp_path / "mine.py").write_text(PIPELINE)
    config = streams()

    def of(function, **changes):
        source = replace(
            config.data.sources["pairs"],
            pipeline=f"{tmp_path}/mine.py:{function}",
            **({"allow_code": True} | changes),
        )
        return config.with_sources({"pairs": source})

    with pytest.raises(ConfigError, match="pipeline '.*mine.py:samples' would run code"):
        StepLoader(of("samples", allow_code=False))
    whole = run(of("samples"))
    keys = [key for batch in sum(whole, []) for key in batch.keys]
    assert len(set(keys[:44])) == 44 and equal(run(of("samples"), start=17), whole[17:])
    for function, said in (
        ("broken", "expected a dictionary with '__key__'"),
        ("decoded", "mine.py:decoded' yields a list as image of 'a'; yield undecoded bytes"),
        ("failing", "failed: OSError: no such bucket"),
        ("gone", "has no function 'gone'"),
    ):
        with pytest.raises((DataError, ConfigError), match=said):
            run(of(function))


def test_large_members_stay_unread_and_weights_by_size_are_refused(make_config, make_shard):
    config = reading(make_config(data={"max_member_bytes": 600}), "stream")
    make_shard(
        "images/0.tar", [("0.webp", picture(3, 64)), ("1.webp", picture(1, 4)), ("2.webp", picture(2, 4))]
    )
    assert len(picture(3, 64)) > 600 > len(picture(1, 4))
    images = replace(config.data.sources["images"], max_skipped_share=0.9, transform=UNCHANGED)
    batches = sum(run(config.with_sources({"images": images})), [])
    assert {reason for batch in batches for reason in batch.read.skipped} == {"too many bytes"} and all(
        "0" not in batch.keys for batch in batches
    )
    weighed = replace(config, data=replace(config.data, weigh_by_size=True))
    with pytest.raises(
        ConfigError,
        match=(
            "data.weigh_by_size needs the number of samples, which is unknown for source 'pairs'; set weights"
        ),
    ):
        StepLoader(weighed)


def test_shards_of_webdataset_itself(tmp_path, make_config):
    """What webdataset's own writer makes, with its order of members."""
    write_tar(
        tmp_path / "own.tar",
        [
            (f"{n}.{suffix}", data)
            for n in range(5)
            for suffix, data in (("txt", caption(n).encode()), ("webp", picture(n)))
        ],
    )
    config = reading(make_config(), "stream", caption_key=None)
    source = replace(config.data.sources["pairs"], shards=str(tmp_path / "own.tar"))
    assert {
        key for batch in sum(run(config.with_sources({"pairs": source})), []) for key in batch.keys
    } == set("01234")
