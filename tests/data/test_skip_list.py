"""Skip lists: strict reading, the perceptual hash against an independent one, and a run that never sees what
is listed.
"""

import hashlib
import io
import os
import re

import numpy as np
import pytest
import torch
from data.shard_files import caption, encode, pair_members, picture
from PIL import Image
from scipy.fft import dctn

from flava_ds.config import SourceConfig
from flava_ds.data.decode import decode_image
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.loader import StepLoader
from flava_ds.data.quarantine import encoded
from flava_ds.data.reader import BatchReader
from flava_ds.data.skip_list import differing_bits, load_skip_list, perceptual_hash, shard_place
from flava_ds.data.sources import Lane, open_source
from flava_ds.errors import CheckpointError, DataError
from flava_ds.families.flava.config import flava_objectives
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.storage import faults


def scene(number: int, width: int = 320, height: int = 240) -> Image.Image:
    """A smooth picture with as much detail at every scale as photographs have (amplitude 1/frequency)."""
    random = np.random.default_rng(number)
    spectrum = np.fft.rfft2(random.normal(size=(height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    pixels = np.fft.irfft2(spectrum / frequency[:, :, None], s=(height, width), axes=(0, 1))
    return Image.fromarray(np.uint8(255 * (pixels - pixels.min()) / np.ptp(pixels)))


def hash_of(picture: Image.Image) -> int:
    """Hashes a picture of Pillow's."""
    return perceptual_hash(torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def bits_between(a: int, b: int) -> int:
    """Counts differing bits in plain Python."""
    return bin(a ^ b).count("1")


@pytest.mark.parametrize("number", range(5))
def test_hash_agrees_with_scipy_and_pillow(number):
    """The definition of the imagehash package: median of the 8 x 8 lowest coefficients of scipy's DCT, on
    Pillow's resized luminance.
    """
    original = scene(number)
    low = dctn(
        np.asarray(original.convert("L").resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
    )[:8, :8]
    expected = int("".join("1" if bit else "0" for bit in (low > np.median(low)).ravel()), 2)
    assert bits_between(hash_of(original), expected) <= 2


def test_hash_survives_what_downloads_do_and_tells_pictures_apart():
    near, far = [], []
    for number in range(40):
        original = scene(number)
        stream = io.BytesIO()
        original.resize((256, 192), Image.Resampling.BOX).save(stream, "jpeg", quality=80)
        near.append(bits_between(hash_of(original), perceptual_hash(decode_image(stream.getvalue()))))
        far += [bits_between(hash_of(original), hash_of(scene(other))) for other in range(100, 105)]
    print(f"re-encoded at 256: at most {max(near)} bits; other pictures: at least {min(far)} of 64")
    assert max(near) <= 6 < min(far)


def test_flat_pictures_have_one_hash():
    assert (
        len(
            {
                perceptual_hash(torch.full((3, size, size), value, dtype=torch.uint8))
                for size in (9, 40)
                for value in (20, 77, 255)
            }
        )
        == 1
    )


def test_differing_bits_counts_every_bit():
    random = np.random.default_rng(0)
    hashes, other = (
        random.integers(0, 2**64, 50, dtype=np.uint64),
        int(random.integers(0, 2**64, dtype=np.uint64)),
    )
    assert differing_bits(hashes, other).tolist() == [bits_between(int(value), other) for value in hashes]


def test_a_picture_is_found_exactly_by_the_entries_within_their_distance(tmp_path):
    """Against a loop over the entries in plain Python, with hashes around the picture's own."""
    random, found = np.random.default_rng(1), []
    picture = torch.from_numpy(random.integers(0, 256, (3, 40, 40), dtype=np.uint8))
    own = perceptual_hash(picture)
    for count in (1, 2, 3, 30) * 20:
        entries = []
        for _ in range(count):
            flipped = random.choice(64, random.integers(0, 64), replace=False)
            entries.append((own ^ sum(1 << int(bit) for bit in flipped), int(random.integers(0, 24))))
        lines = "\n".join(f"phash {value:016x} {bits}" for value, bits in entries)
        found.append(load_skip_list(write_list(tmp_path, lines)).has_pixels(picture))
        assert found[-1] == any(bits_between(own, value) <= bits for value, bits in entries)
    assert True in found and False in found


def write_list(folder, text: str) -> str:
    """Writes a skip list."""
    path = folder / "skip.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_reads_entries_comments_and_distances(tmp_path):
    lines = [
        "# test images",
        "key 000000391895",
        "",
        f"sha256 {'a' * 64}  # by bytes",
        "phash 00ff00ff00ff00ff 6",
        f"phash {'0' * 16}",
    ]
    found = load_skip_list(write_list(tmp_path, "\n".join(lines)))
    assert found.keys == {"000000391895"} and found.digests == {"a" * 64}
    assert (
        found.hashes.tolist() == [0x00FF00FF00FF00FF, 0]
        and found.distances.tolist() == [6, 0]
        and len(found) == 4
        and found.reads_images
    )


@pytest.mark.parametrize(
    "line",
    [
        "000000391895",
        "key a b",
        "key",
        "sha256 abc",
        "phash 00ff",
        "phash 00ff00ff00ff00ff six",
        "url http://a/b.jpg",
    ],
)
def test_strange_line_is_named(tmp_path, line):
    with pytest.raises(DataError, match=r"skip.txt', line 2: "):
        load_skip_list(write_list(tmp_path, f"key 1\n{line}\n"))


def test_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.txt' cannot be read: .*flava-ds prepare skiplist"):
        load_skip_list(tmp_path / "gone.txt")


def test_fingerprint_follows_the_entries_not_their_order(tmp_path):
    first = load_skip_list(write_list(tmp_path, "key a\nkey b\nphash 00ff00ff00ff00ff 6\n")).fingerprint
    assert (
        first == load_skip_list(write_list(tmp_path, "phash 00ff00ff00ff00ff 6\nkey b\nkey a\n")).fingerprint
    )
    assert (
        first != load_skip_list(write_list(tmp_path, "phash 00ff00ff00ff00ff 5\nkey b\nkey a\n")).fingerprint
    )


def test_the_fingerprint_is_the_one_that_checkpoints_hold_and_is_made_once(tmp_path, monkeypatch):
    """Against the hash of the four sorted lists, as the first version made it for every checkpoint."""
    shards = ("b.tar", "/d/x 1.tar", "s3://b/0.tar", "/d/0.tar")
    samples = sorted((shard, key) for shard in shards for key in ("10", "9 %", "a'b"))
    lines = [
        *("key b", "key a", f"sha256 {'a' * 64}", "phash ff00ff00ff00ff00 6", "phash 00ff00ff00ff00ff"),
        *(f"sample {encoded(shard)} {encoded(key)}" for shard, key in reversed(samples + samples[:2])),
    ]
    hashes = [(0x00FF00FF00FF00FF, 0), (0xFF00FF00FF00FF00, 6)]
    for kept, plain in (
        (lines, (["a", "b"], ["a" * 64], hashes, samples)),
        (lines[:1], (["b"], [], [], [])),
        ([], ([], [], [], [])),
    ):
        found = load_skip_list(write_list(tmp_path, "\n".join(kept)))
        assert found.fingerprint == hashlib.sha256(repr(plain).encode()).hexdigest()[:16]
    found = load_skip_list(write_list(tmp_path, "\n".join(lines)))
    known = found.fingerprint
    monkeypatch.setattr(hashlib, "sha256", None)
    assert found.fingerprint == known


def test_listed_shards_are_resolved_once_when_the_list_is_read(tmp_path, monkeypatch):
    """Loader processes are forked later: what they computed themselves, each would hold a copy of."""
    folder, looked = tmp_path / "a" / "b" / "c", []
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    (folder / "own.tar").symlink_to("../other.tar")
    names = [*(f"{n:05d}.tar" for n in range(50)), "own.tar"]
    lines = [f"sample {tmp_path}/link/{name} {key}" for name in names for key in range(3)]
    plain = os.lstat
    monkeypatch.setattr(os, "lstat", lambda *given, **more: (looked.append(given), plain(*given, **more))[1])
    found = load_skip_list(write_list(tmp_path, "\n".join(lines)))
    # one for each shard, and those of the folder and of the one link, each of few parts
    assert len(looked) <= len(names) + 4 * len(folder.parts)
    held, looked[:] = set(vars(found)), []
    for name in names:
        assert found.has_key("2", f"{tmp_path}/link/{name}") and not found.has_key("3", f"{folder}/{name}")
    assert found.has_key("0", f"{folder.parent}/other.tar")
    assert set(vars(found)) == held and len(looked) <= len(names) + 4 * len(folder.parts)


def test_a_shards_place_is_its_real_path(tmp_path, monkeypatch):
    """Links to files, to folders, of links, in circles, and what is not there, against os.path.realpath."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "0.tar").touch()
    links = {
        "folder": "real",
        "again": "folder/deep",
        "real/up": "../again",
        "real/deep/1.tar": "0.tar",
        "real/deep/2.tar": "../up/1.tar",
        "3.tar": "again/2.tar",
        "circle": "circle",
        "real/gone.tar": "nowhere/../deep/0.tar",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    folders = ("", "real/", "folder/deep/", "again/", "real/up/", "circle/", "nowhere/", "real/../again/")
    for folder in folders:
        for name in ("0.tar", "1.tar", "2.tar", "3.tar", "gone.tar", "circle", "circle/0.tar", "none.tar"):
            for path in (f"{folder}{name}", f"{tmp_path}/{folder}{name}"):
                assert shard_place(path) == os.path.realpath(os.path.abspath(path))
    assert [shard_place(path) for path in ("", "/", "s3://b/0.tar", "pipe:cat 0.tar")] == [
        *("", "/", "s3://b/0.tar", "pipe:cat 0.tar")
    ]


LISTED = 3
FORMS = {
    "key": f"key {LISTED:09d}\n",
    "sha256": f"sha256 {hashlib.sha256(picture(LISTED)).hexdigest()}\n",
    "phash": f"phash {perceptual_hash(decode_image(picture(LISTED))):016x} 0\n",
}


@pytest.fixture
def build(make_config, make_shard, tmp_path):
    """Returns a function that builds the configuration and source of six pairs with a skip list."""

    def build(text: str | None, **changes):
        make_shard("few/0.tar", pair_members(range(6)))
        objectives = flava_objectives(itm=ImageTextMatchingConfig(mismatch_probability=1.0))
        config = make_config(objectives=objectives, training={"global_batch_size": 6})
        path = write_list(tmp_path, text) if text is not None else None
        source = SourceConfig(
            kind="pair", shards=str(tmp_path / "few"), max_tokens=24, skip_list=path, **changes
        )
        config = config.with_sources({"few": source})
        return config, IndexedShards(config, "few")

    return build


@pytest.mark.parametrize("form", FORMS)
def test_listed_sample_is_replaced_counted_and_never_borrowed_from(build, form):
    """Mismatches borrow a caption in every sample: none may be the listed one's."""
    config, source = build(FORMS[form])
    reader, captions, skipped = BatchReader(config, source), [], 0
    plain = reader.collator

    def keep(samples, skips, borrowed, *given):
        captions.extend([*borrowed.values(), *(sample.text for sample in samples)])
        return plain(samples, skips, borrowed, *given)

    reader.collator = keep
    keep.empty_views, keep.augment = plain.empty_views, plain.augment
    for step in range(10):
        batch = reader.batch(np.arange(6 * step, 6 * step + 6))
        assert (
            f"{LISTED:09d}" not in batch.keys
            and batch.size == 6
            and set(batch.read.skipped) == {faults.SKIP_LIST}
        )
        skipped += batch.read.skipped[faults.SKIP_LIST]
    assert (
        len(captions) == 120
        and caption(LISTED) not in captions
        and {caption(number) for number in range(6)} - {caption(LISTED)} == set(captions)
    )
    assert skipped >= 10  # once in every epoch, and whenever a replacement draws it again


@pytest.mark.parametrize("form", FORMS)
def test_batches_do_not_depend_on_the_form_of_the_list(build, form):
    batches = [BatchReader(*build(text)).batch(np.arange(12)) for text in (FORMS["key"], FORMS[form])]
    assert batches[0].keys == batches[1].keys and torch.equal(
        batches[0]["pixel_values"], batches[1]["pixel_values"]
    )
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])


def test_listed_samples_are_no_loss(build, make_shard, tmp_path):
    """Half of the samples listed is far above max_skipped_share, yet the run goes on."""
    config, source = build("key 000000000\nkey 000000001\nkey 000000002\n", max_skipped_share=0.01)
    reader = BatchReader(config, source)
    for step in range(40):
        reader.batch(np.arange(6 * step, 6 * step + 6))
    assert reader.skips.seen > 200 and reader.skips.summary().startswith("0 of ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key 000000001\nkey gone\nkey 1\n", "take out 1 of its 6 samples"),
        ("key gone\n", "take out none of its 6 samples"),
        ("sample {folder}/0.tar 000000001\nsample {folder}/1.tar 000000002\n", "take out 1 of its 6 samples"),
        (
            "".join(f"key {number:09d}\n" for number in range(4)),
            "take out 4 of its 6 samples; more than half: is '.*skip.txt' the list for these shards[?]",
        ),
    ],
)
def test_the_start_says_how_many_samples_the_keys_take_out(build, tmp_path, text, words):
    _, source = build(text.format(folder=tmp_path / "few"))
    [line] = [line for line in source.notes(Lane()) if "skip list" in line]
    assert re.fullmatch(f"source 'few': the keys of its skip list {words}", line)


def test_lists_of_pictures_alone_and_no_list_count_nothing(build):
    for text in (FORMS["phash"], None):
        assert not any("skip list" in line for line in build(text)[1].notes(Lane()))


@pytest.mark.parametrize("reading", ["indexed", "stream"])
def test_a_list_of_all_samples_says_that_it_leaves_nothing(build, reading):
    config, _ = build("".join(f"key {number:09d}\n" for number in range(6)), reading=reading)
    source = open_source(config, "few")
    with pytest.raises(DataError) as error:
        BatchReader(config, source).batch(np.arange(6))
    assert str(error.value) == (
        "source 'few': 200 samples in a row cannot be used: skip list 200; the skip list leaves next to "
        "nothing: take entries out of --data.sources.few.skip-list"
    )


def test_resume_with_another_list_is_refused(build):
    saved = StepLoader(build(FORMS["key"])[0]).state(3)
    StepLoader(build(FORMS["key"])[0], start_step=3).check_state(saved)
    with pytest.raises(CheckpointError, match="source 'few': skip_list was [0-9a-f]{16}, is None"):
        StepLoader(build(None)[0], start_step=3).check_state(saved)


def test_picture_of_another_size_is_recognised(build, make_shard):
    """A list made from originals finds what a download has resized and encoded anew."""
    original = scene(1)
    stream = io.BytesIO()
    original.resize((200, 150), Image.Resampling.LANCZOS).save(stream, "jpeg", quality=75)
    make_shard(
        "few/1.tar",
        [
            ("copy.jpg", stream.getvalue()),
            ("copy.txt", b"a copy"),
            ("other.png", encode(np.asarray(scene(2)), "png")),
            ("other.txt", b"b"),
        ],
    )
    _, source = build(f"phash {hash_of(original):016x} 6\n")
    fields = {source.table.key(index): source.read(index) for index in range(len(source))}
    index = {source.table.key(index): index for index in range(len(source))}
    with pytest.raises(faults.SampleFault, match=r"skip list \(phash\)"):
        source.decode(fields["copy"], index["copy"], 0)
    assert source.decode(fields["other"], index["other"], 0).text == "b"
