"""Every reason for which a sample is unusable, and hostile shards that run nothing."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from data.shard_files import caption, pair_members, picture
from data.whole_sources import iterate_once

from flava_ds.config import UNCHANGED, SourceConfig
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.loader import StepLoader
from flava_ds.data.samples import MAX_CHARACTERS
from flava_ds.data.sources import Lane
from flava_ds.errors import ConfigError, DataError
from flava_ds.storage.faults import SampleFault


@pytest.fixture
def source_of(make_config, make_shard):
    """Returns a function that opens a source over given members."""

    def build(members, **changes):
        path = make_shard("case/0.tar", members)
        source = SourceConfig(**{"kind": "pair", "shards": str(path)} | changes)
        return IndexedShards(make_config().with_sources({"case": source}), "case")

    return build


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def decode(source, index=0, **options):
    return source.decode(source.read(index), index, seed=index, **options)


def test_large_members_and_pictures_are_refused_unread_and_undecoded(make_config, make_shard):
    """The shard is cut to nothing after it was opened, so a member that was read would be truncated."""
    image, text = picture(0), b"a caption of thirty-one letters"
    path = make_shard("case/0.tar", [("a.webp", image), ("a.txt", text)])

    def fault(**limits):
        config = make_config(data=limits).with_sources({"case": SourceConfig(kind="pair", shards=str(path))})
        source = IndexedShards(config, "case")
        source._files.read(0, 0, 1)
        with open(path, "r+b") as file:
            whole = file.read()
            file.truncate(0)
            with pytest.raises(SampleFault) as caught:
                source.read(0)
            file.seek(0)
            file.write(whole)
            file.flush()
            return source, str(caught.value)

    assert (
        fault(max_member_bytes=len(image) - 1)[1]
        == f"too many bytes (image of {len(image)}, at most data.max_member_bytes {len(image) - 1})"
    )
    assert fault(max_member_bytes=max(len(image), len(text)))[1].startswith("truncated")
    source = fault(max_image_pixels=1)[0]
    with pytest.raises(SampleFault, match="too many pixels"):
        decode(source)


TEXT_CASES = [
    (b"", None, "empty caption"),
    (b" \n\t ", None, "empty caption"),
    (b"caf\xe9", None, "not utf-8"),
    (b"{}", "captions", "missing caption"),
    (b'{"captions": null}', "captions", "missing caption"),
    (b'{"captions": []}', "captions", "missing caption"),
    (b'{"captions": [1, 2]}', "captions", "missing caption"),
    (b'{"captions": ["", " "]}', "captions", "empty caption"),
    (b'["captions"]', "captions", "missing caption"),
    (b"{broken", "captions", "undecodable"),
    (b"[" * 100_000, "captions", "undecodable"),
    (b'{"captions": "caf\xe9"}', "captions", "not utf-8"),
    (b'{"captions": "\\ud800"}', "captions", "not utf-8"),
    (b'{"captions": ' + b"9" * 5000 + b"}", "captions", "undecodable"),
    (b'{"captions": NaN}', "captions", "missing caption"),
]


@pytest.mark.parametrize(("data", "key", "reason"), TEXT_CASES)
def test_unusable_captions_say_why(source_of, data, key, reason):
    source = source_of([("a.webp", picture(0)), (f"a.{'json' if key else 'txt'}", data)], caption_key=key)
    with pytest.raises(SampleFault) as caught:
        decode(source)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "truncated"), (b"no picture at all", "undecodable"), (picture(0)[:60], "undecodable")],
)
def test_unusable_pictures_say_why(source_of, data, reason):
    source = source_of([("a.webp", data), ("a.txt", b"red")])
    with pytest.raises(SampleFault) as caught:
        decode(source)
    assert caught.value.reason == reason


def test_long_captions_are_cut_and_marks_stripped(source_of):
    source = source_of([("a.webp", picture(0)), ("a.txt", b"\xef\xbb\xbf" + b" cat" * 10_000)])
    assert len(decode(source).text) == MAX_CHARACTERS and decode(source).text.startswith("cat cat")


def test_one_of_several_captions_is_drawn_by_the_seed(source_of):
    record = json.dumps({"captions": ["one", "two", "", "three"]}).encode()
    source = source_of([("a.webp", picture(0)), ("a.json", record)], caption_key="captions")
    fields = source.read(0)
    drawn = [source.decode(fields, 0, seed).text for seed in range(300)]
    assert [source.decode(fields, 0, seed).text for seed in range(300)] == drawn
    assert all(abs(drawn.count(word) - 100) < 4 * (300 * 2 / 9) ** 0.5 for word in ("one", "two", "three"))
    assert source.decode(fields, 0, 0).captions == ("one", "two", "three")


def test_keys_with_dots_are_counted_and_an_empty_source_says_why(source_of):
    dotted = [("at 10.15.jpg", picture(0)), ("at 10.15.txt", b"red")]
    source = source_of([("b.webp", picture(1)), ("b.txt", b"blue"), *dotted])
    assert "1 usable samples; left out: suffix with a dot 2" in source.notes(Lane())[1]
    with pytest.raises(DataError, match="suffix with a dot 2; .*take the dots out of keys"):
        source_of(dotted)


def test_the_start_names_damaged_shards_and_what_they_have_lost(make_config, make_shard, caplog):
    """Once, by rank 0. Of what is no record of a shard nothing is said."""
    for number in range(8):
        path = make_shard(f"case/{number}.tar", pair_members(range(10 * number, 10 * number + 10)))
        if number not in (1, 2):
            path.write_bytes(path.read_bytes()[:2000])
    (path.parent / "0_stats.json").write_text('{"successes": 10}')
    (path.parent / "3_stats.json").write_text('{"successes": "many"}')
    source = SourceConfig(kind="pair", shards=str(path.parent), max_skipped_share=0.9)
    config = make_config().with_sources({"case": source})
    StepLoader(config, 1, 2)
    assert "damaged" not in caplog.text
    StepLoader(config, 0, 2)
    (said,) = [line for line in caplog.messages if "shards are damaged" in line]
    assert said.startswith(
        f"source 'case': 6 of 8 shards are damaged: {path.parent}/0.tar (truncated shard 1, 1 of 10 samples "
        f"left), {path.parent}/3.tar (truncated shard 1), {path.parent}/4.tar"
    )
    assert f"{path.parent}/6.tar (truncated shard 1) and 1 more; replace them" in said and "2.tar" not in said


def test_a_shard_cut_after_indexing_is_reported_as_truncated(source_of):
    source = source_of(pair_members(range(4)))
    decode(source, 0)
    with source.table.shards[0].open("r+b") as stream:
        stream.truncate(int(source.table.columns["caption"][0][2]) + 3)
    decode(source, 1)
    with pytest.raises(SampleFault, match="truncated"):
        decode(source, 2)
    source._files = pickle.loads(pickle.dumps(source._files))  # as in a new process, with no file open
    with pytest.raises(DataError, match="was changed or replaced while it is being read"):
        decode(source, 0)
    source.table.shards[0].unlink()
    with pytest.raises(DataError, match="cannot be read"):
        decode(source, 0)


def test_incomplete_samples_never_enter_and_an_unusable_source_is_refused(source_of):
    source = source_of([("a.webp", picture(0)), ("b.txt", b"red"), ("c.webp", picture(1)), ("c.txt", b"dog")])
    assert (
        len(source) == 1
        and source.table.faults == {"missing caption": 1, "no image": 1}
        and source.where(0).startswith("'c' in ")
    )
    with pytest.raises(
        DataError,
        match=(
            "0 usable samples in 1 shard; not usable: missing caption 2; kind 'pair' needs image and caption"
        ),
    ):
        source_of([("a.webp", picture(0)), ("b.webp", picture(1))])
    with pytest.raises(DataError, match="more than max_skipped_share 0.05"):
        source_of([*pair_members(range(100)), *((f"x{n}.txt", b"red") for n in range(10))])
    assert len(source_of([*pair_members(range(100)), *pair_members(range(20))])) == 100
    assert (
        len(
            source_of(
                [*pair_members(range(100)), *((f"x{n}.txt", b"red") for n in range(10))],
                max_skipped_share=0.2,
            )
        )
        == 100
    )


CODES = [
    (npy(np.arange(16)), None),
    (npy(np.arange(16, dtype=np.uint16).reshape(4, 4)), None),
    (npy(np.arange(9)), "expected 16 integers"),
    (npy(np.arange(16) / 2), "not an .npy of little-endian integers"),
    (npy(np.arange(16) + 60), "codebook.vocab_size is 64"),
    (npy(np.arange(16) - 1), "values -1"),
    (npy(np.array([object()] * 16)), "pickled arrays are refused"),
    (b"junk", "bad image codes"),
    (npy(np.arange(16))[:-1], "do not match the 16 integers"),
    (
        npy(np.arange(16)).replace(b"(16,), }        ", b"(9999999999,), }"),
        "do not match the 9999999999 integers",
    ),
    (b"PK\x03\x04 half a zip", "bad image codes"),
]


@pytest.mark.parametrize(("data", "fault"), CODES)
def test_codes_are_checked(source_of, data, fault):
    source = source_of(
        [("a.webp", picture(0)), ("a.codes.npy", data)],
        kind="image",
        image_codes_key="codes.npy",
        transform=UNCHANGED,
    )
    if fault is None:
        assert decode(source).codes.tolist() == list(range(16))
    else:
        with pytest.raises(SampleFault, match=fault):
            decode(source)


def test_codes_must_be_npy(source_of):
    with pytest.raises(ConfigError, match="must end with npy"):
        source_of([("a.webp", picture(0))], kind="image", image_codes_key="codes.pkl")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_hostile_members_run_nothing_and_stay_unread(make_config, make_shard, tmp_path):
    bomb = pickle.dumps(Bomb(str(tmp_path / "ran")))
    members = []
    for number in range(8):
        extra = [
            (f"{number:09d}.{suffix}", bomb)
            for suffix in ("pkl", "pyd", "pth", "pickle", "cbor", "npy", "txt.gz", "webp.pkl")
        ]
        members += [*pair_members([number]), *extra]
    path = make_shard(
        "hostile.tar",
        [*members, ("../../escape.webp", picture(1)), ("../../escape.txt", caption(1).encode())],
    )
    config = make_config()
    config = config.with_sources(
        {"pairs": replace(config.data.sources["pairs"], shards=str(path), caption_key=None)}
    )
    keys = {key for batches in StepLoader(config) for batch in batches for key in batch.keys}
    assert sum(len(batch) for batch in iterate_once(config, "pairs")) == 8
    assert "../../escape" not in keys and len(keys) == 8
    assert IndexedShards(config, "pairs").table.faults == {
        "unsafe name": 2,
        "pickled member": 48,
        "packed member": 8,
    }
    assert not (tmp_path / "ran").exists() and not list(tmp_path.parent.glob("escape*"))
