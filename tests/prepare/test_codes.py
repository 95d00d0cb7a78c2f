"""Shards with precomputed codes: what is in them, how a stopped run goes on, and that the loader
reads them."""

import dataclasses
import io
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from data.shard_files import caption, picture, read_tar, write_tar

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.config import UNCHANGED, CodebookConfig, Config, SourceConfig
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.data.decode import decode_image
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.transforms import center_pixels
from flava_ds.errors import ConfigError, DataError
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.prepare import added_members
from flava_ds.prepare.added_members import AddedMember, add_members
from flava_ds.prepare.codes import write_codes

CODEBOOK = CodebookConfig(
    hidden_size=8, num_groups=3, num_blocks_per_group=1, vocab_size=600, image_size=16, decoder_init_size=8
)
CONFIG = Config(
    name="test", codebook=CODEBOOK, model=FlavaConfig(image=VisionEncoderConfig(image_size=32, patch_size=8))
)


@pytest.fixture
def codebook() -> ImageCodebook:
    torch.manual_seed(0)
    return ImageCodebook(CODEBOOK).requires_grad_(False).eval()


@pytest.fixture
def source(tmp_path) -> SourceConfig:
    (tmp_path / "in").mkdir()
    for shard in range(3):
        members = []
        for number in range(5 * shard, 5 * shard + 5):
            members += [
                (f"x/{number:04d}.webp", picture(number, 20 + number)),
                (f"x/{number:04d}.txt", caption(number).encode()),
            ]
        write_tar(tmp_path / "in" / f"{shard:05d}.tar", members)
    return SourceConfig(kind="pair", shards=str(tmp_path / "in"), transform=UNCHANGED)


def test_codes_are_those_of_the_unchanged_transform(source, codebook, tmp_path):
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    report = write_codes(source, codebook, CONFIG, out=tmp_path / "out", batch_size=2)
    assert dataclasses.astuple(report) == (3, 0, 15, 0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    for shard in range(3):
        old, new = (
            read_tar(tmp_path / "in" / f"{shard:05d}.tar"),
            read_tar(tmp_path / "out" / f"{shard:05d}.tar"),
        )
        assert {name: data for name, data in new.items() if not name.endswith(".codes.npy")} == old
        assert len(new) == len(old) + 5
        for number in range(5 * shard, 5 * shard + 5):
            codes = np.load(io.BytesIO(new[f"x/{number:04d}.codes.npy"]), allow_pickle=False)
            pixels = center_pixels([decode_image(old[f"x/{number:04d}.webp"])], 16)
            assert codes.dtype == np.uint16 and codes.shape == (16,)
            np.testing.assert_array_equal(codes, codebook.encode(pixels)[0].numpy())


def test_the_source_reads_them_back(source, codebook, tmp_path):
    write_codes(source, codebook, CONFIG, out=tmp_path / "out")
    stored = dataclasses.replace(source, shards=str(tmp_path / "out"), image_codes_key="codes.npy")
    coded = IndexedShards(CONFIG.with_sources({"pairs": stored}), "pairs")
    assert len(coded) == 15
    for index in range(15):
        sample = coded.decode(coded.read(index), index, 0)
        expected = codebook.encode(center_pixels([sample.image], 16))[0]
        np.testing.assert_array_equal(sample.codes, expected.numpy())


def test_bytes_depend_on_nothing_else_and_batches_do_not_matter(source, codebook, tmp_path):
    write_codes(source, codebook, CONFIG, out=tmp_path / "a", batch_size=2)
    write_codes(source, codebook, CONFIG, out=tmp_path / "b", batch_size=64)
    for shard in ("00000.tar", "00002.tar"):
        assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


class Stop(Exception):
    """Ends a run after its first shard."""


def test_a_stopped_run_goes_on_with_the_next_shard(source, codebook, tmp_path):
    def stop(shard, samples):
        raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        write_codes(source, codebook, CONFIG, out=out, on_shard=stop)
    first = (out / "00000.tar").stat().st_mtime_ns
    report = write_codes(source, codebook, CONFIG, out=out)
    assert (report.shards_written, report.shards_kept, report.samples) == (2, 1, 15)
    assert (out / "00000.tar").stat().st_mtime_ns == first
    assert not list(out.glob("*.partial"))


def test_another_codebook_or_another_shard_is_coded_anew(source, codebook, tmp_path):
    out = tmp_path / "out"
    write_codes(source, codebook, CONFIG, out=out)
    write_tar(tmp_path / "in" / "00001.tar", [("x/0099.webp", picture(99))])
    assert write_codes(source, codebook, CONFIG, out=out).shards_written == 1
    other = ImageCodebook(CODEBOOK)
    assert write_codes(source, other, CONFIG, out=out).shards_written == 3


def test_in_place_twice_changes_nothing(source, codebook, tmp_path):
    write_codes(source, codebook, CONFIG, out=None)
    after = {path.name: path.read_bytes() for path in (tmp_path / "in").glob("*.tar")}
    assert write_codes(source, codebook, CONFIG, out=None).shards_kept == 3
    for record in (tmp_path / "in").glob("*.codes.json"):
        record.unlink()
    assert write_codes(source, codebook, CONFIG, out=None).shards_written == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").glob("*.tar")} == after


def test_an_undecodable_picture_is_copied_without_codes(source, codebook, tmp_path):
    write_tar(
        tmp_path / "in" / "00001.tar",
        [("a.webp", b"RIFFxxxxWEBPVP8 "), ("a.txt", b"broken"), ("b.webp", picture(1))],
    )
    report = write_codes(source, codebook, CONFIG, out=tmp_path / "out")
    assert (report.samples, report.failed) == (11, 1)
    assert set(read_tar(tmp_path / "out" / "00001.tar")) == {"a.webp", "a.txt", "b.webp", "b.codes.npy"}
    assert str(report).endswith("samples: 11, and 1 more with a picture that cannot be decoded")


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_second_picture_of_a_sample_gets_no_second_codes(source, codebook, tmp_path, batch_size):
    twice = [("a.webp", picture(1)), ("a.webp", picture(2)), ("b.webp", picture(1))]
    write_tar(tmp_path / "in" / "00001.tar", twice)
    report = write_codes(source, codebook, CONFIG, out=tmp_path / "out", batch_size=batch_size)
    with tarfile.open(tmp_path / "out" / "00001.tar") as tar:
        assert tar.getnames() == ["a.webp", "a.codes.npy", "a.webp", "b.webp", "b.codes.npy"]
    assert report.samples == 12


def test_what_is_refused(source, codebook, tmp_path):
    with pytest.raises(ConfigError, match="kind 'text'"):
        write_codes(dataclasses.replace(source, kind="text"), codebook, CONFIG, out=tmp_path / "out")
    small = dataclasses.replace(
        CONFIG, model=FlavaConfig(image=VisionEncoderConfig(image_size=32, patch_size=16))
    )
    with pytest.raises(ConfigError, match="4 x 4 codes, but model.image has 2 x 2"):
        write_codes(source, codebook, small, out=tmp_path / "out")
    without = dataclasses.replace(CONFIG, model=BertConfig())
    with pytest.raises(ConfigError, match="family 'bert' see no grid of patches"):
        write_codes(source, codebook, without, out=tmp_path / "out")
    with pytest.raises(DataError, match="folder of the shards themselves"):
        write_codes(source, codebook, CONFIG, out=tmp_path / "in")
    (tmp_path / "in" / "00001.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(DataError, match="00001.tar"):
        write_codes(source, codebook, CONFIG, out=tmp_path / "out")
    assert not (tmp_path / "out" / "00001.tar").exists() and not list((tmp_path / "out").glob("*.partial"))


def test_names_that_are_not_utf8_keep_their_bytes(source, codebook, tmp_path):
    name = b"x/caf\xe9".decode("utf-8", "surrogateescape")
    write_tar(tmp_path / "in" / "00003.tar", [(f"{name}.webp", picture(1, 20)), (f"{name}.txt", b"a cup")])
    assert write_codes(source, codebook, CONFIG, out=tmp_path / "out").failed == 0
    assert list(read_tar(tmp_path / "out" / "00003.tar")) == [
        f"{name}.webp",
        f"{name}.codes.npy",
        f"{name}.txt",
    ]
    assert b"x/caf\xe9.codes.npy\0" in (tmp_path / "out" / "00003.tar").read_bytes()


def test_a_joined_shard_is_copied_whole_and_a_cut_one_up_to_the_cut(source, codebook, tmp_path, caplog):
    joined, cut = tmp_path / "in" / "00000.tar", tmp_path / "in" / "00001.tar"
    joined.write_bytes(joined.read_bytes() + cut.read_bytes())
    cut.write_bytes(cut.read_bytes()[: 4 * 1024 + 100])
    report = write_codes(source, codebook, CONFIG, out=tmp_path / "out")
    assert (report.shards_written, report.samples) == (3, 10 + 2 + 5)
    assert [len(read_tar(tmp_path / "out" / f"0000{shard}.tar")) for shard in range(3)] == [30, 5, 15]
    assert "00000.tar': zeros inside a shard 1; copied whole" in caplog.text
    assert "00001.tar': truncated shard 1; copied up to there" in caplog.text
    before = cut.read_bytes()
    with pytest.raises(DataError, match="in its place would lose all that comes after"):
        write_codes(source, codebook, CONFIG, out=None)
    assert cut.read_bytes() == before


def test_no_more_is_held_than_a_chunk_of_decoded_pictures_or_of_members(source, tmp_path, monkeypatch):
    given = []

    def compute(images):
        given.append(len(images))
        return [b"x"] * len(images)

    member = AddedMember(what="things", suffix="thing", maker={"maker": "1"}, compute=compute)
    tell = {"on_shard": lambda shard, samples: None}
    monkeypatch.setattr(added_members, "CHUNK_BYTES", 3 * 20 * 20 + 3 * 21 * 21)  # the first two pictures
    assert add_members(str(tmp_path / "in"), member, out=tmp_path / "out", **tell).samples == 15
    assert given == [2, 2, 1, 2, 2, 1, 1, 1, 1, 1, 1]  # those of shard 2 have 30 and more pixels an edge
    one = tmp_path / "in" / "00000.tar"
    groups = list(added_members._groups(one, "thing", 64, Counter()))
    sizes = [sum(len(data) for _, data in group) for group in groups]
    assert len(groups) > 1 and all(size >= added_members.CHUNK_BYTES for size in sizes[:-1])
