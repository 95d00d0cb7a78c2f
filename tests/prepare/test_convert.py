"""From published files to shards that the loader reads: bytes untouched, everything left out is counted,
nothing is read outside the image folder.
"""

import csv
import json
import tarfile

import numpy as np
import pytest
from data.shard_files import caption, encode, pair_members, picture, write_tar
from data.whole_sources import iterate_once
from prepare.test_coco import image, write

from flava_ds.config import Config, SourceConfig
from flava_ds.data.indexed import IndexedShards
from flava_ds.errors import DataError
from flava_ds.prepare.annotations import NO_CAPTION, TOO_SHORT
from flava_ds.prepare.convert import NO_FILE, OTHER_URL, filter_shards, write_shards, write_urls
from flava_ds.prepare.corpora import CORPORA
from flava_ds.storage import faults

GREY = np.full((20, 30, 3), 90, dtype=np.uint8)


def reading(folder, kind: str, **fields) -> Config:
    """A configuration whose one source, 'read', has its shards in a folder."""
    return Config(name="test").with_sources({"read": SourceConfig(kind=kind, shards=str(folder), **fields)})


def record_of(folder, key: str) -> dict:
    """Returns a sample's .json, wherever in the folder's shards it is."""
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            if f"{key}.json" in tar.getnames():
                return json.load(tar.extractfile(f"{key}.json"))
    raise KeyError(key)


@pytest.fixture
def coco(tmp_path):
    """Eight images of COCO, among them one missing, one GIF, one cut short, and one whose name leads out of
    the folder.
    """
    names = {number: f"COCO_val2014_{number:012d}.jpg" for number in range(8)} | {6: "../secret.jpg"}
    folder = tmp_path / "images" / "val2014"
    folder.mkdir(parents=True)
    for number, name in names.items():
        if number not in (2, 6):
            (folder / name).write_bytes(encode(GREY + np.uint8(number), "jpeg" if number % 2 else "png"))
    (tmp_path / "secret.jpg").write_bytes(encode(GREY, "jpeg"))
    (folder / names[3]).write_bytes(encode(GREY, "gif"))
    (folder / names[4]).write_bytes(b"\xff\xd8\xff")
    captions = [
        {"image_id": number, "id": 10 * number + turn, "caption": f"{caption(number)} {turn}"}
        for number in range(8)
        for turn in range(2)
    ]
    file = write(
        tmp_path, "captions_val2014.json", [image(number, name) for number, name in names.items()], captions
    )
    return file, tmp_path / "images"


def test_coco_to_shards_that_training_reads(coco, tmp_path):
    annotations, images = coco
    counts = write_shards(CORPORA["coco"], [annotations], images, tmp_path / "out", samples_per_shard=3)
    assert (counts.entries, counts.samples, counts.captions, counts.words) == (8, 4, 8, 8 * 8)
    assert counts.dropped == {NO_FILE: 2, faults.UNDECODABLE: 1, faults.TRUNCATED: 1}
    config = reading(tmp_path / "out", "pair", caption_key="captions")
    [samples] = iterate_once(config, "read")
    assert [sample.key for sample in samples] == [f"{number:012d}" for number in (0, 1, 5, 7)]
    assert samples[1].captions == (f"{caption(1)} 0", f"{caption(1)} 1")
    assert record_of(tmp_path / "out", samples[1].key)["image_id"] == 1
    original = (images / "val2014" / f"COCO_val2014_{7:012d}.jpg").read_bytes()
    reader = IndexedShards(config, "read")
    assert reader.read(3)["image"] == original
    assert [sample.text for sample in next(iterate_once(reading(tmp_path / "out", "pair"), "read"))] == [
        f"{caption(number)} 0" for number in (0, 1, 5, 7)
    ]


def test_a_file_named_by_the_row_of_another_list_is_not_taken(tmp_path):
    """img2dataset downloaded the filtered list, whose second row is the third of the published file."""
    (tmp_path / "cc3m.tsv").write_text(
        "a red car\thttp://x/1.jpg\n \thttp://x/2.jpg\na blue car\thttp://x/3.jpg\na green "
        "car\thttp://x/4.jpg\n"
    )
    folder = tmp_path / "images" / "00000"
    folder.mkdir(parents=True)
    for row, number in enumerate((1, 3, 4)):
        (folder / f"{row:09d}.jpg").write_bytes(encode(GREY, "jpeg"))
        (folder / f"{row:09d}.json").write_text(
            json.dumps({"url": f"http://x/{number}.jpg", "status": "success"})
        )
    (folder / f"{3:09d}.jpg").write_bytes(encode(GREY, "jpeg"))
    counts = write_shards(CORPORA["cc3m"], [tmp_path / "cc3m.tsv"], tmp_path / "images", tmp_path / "out")
    assert counts.samples == 2 and counts.dropped == {"empty caption": 1, OTHER_URL: 1}


def test_second_call_returns_the_same_counts_without_reading_and_says_so(coco, tmp_path, caplog):
    annotations, images = coco
    caplog.set_level("INFO")
    first = write_shards(CORPORA["coco"], [annotations], images, tmp_path / "out")
    for path in images.rglob("*.jpg"):
        path.unlink()
    assert write_shards(CORPORA["coco"], [annotations], images, tmp_path / "out") == first
    assert "out' was finished before, nothing is read; delete it to prepare it again" in caplog.text


def test_second_call_on_other_inputs_or_without_its_shards_is_refused(coco, tmp_path):
    annotations, images = coco
    out = tmp_path / "out"
    write_shards(CORPORA["coco"], [annotations], images, out, samples_per_shard=3)
    text = annotations.read_text()
    annotations.write_text(text.replace(caption(1), caption(1).swapcase()))
    with pytest.raises(DataError, match="was prepared from other annotations or with other options"):
        write_shards(CORPORA["coco"], [annotations], images, out, samples_per_shard=3)
    annotations.write_text(text)
    with pytest.raises(DataError, match="was prepared from other annotations or with other options"):
        write_shards(CORPORA["coco"], [annotations], tmp_path, out, samples_per_shard=3)
    (out / "00000.tar").unlink()
    with pytest.raises(DataError, match="counts 4 samples, but .* hold 0; delete the folder"):
        write_shards(CORPORA["coco"], [annotations], images, out, samples_per_shard=3)


def test_interrupted_conversion_goes_on(coco, tmp_path, monkeypatch):
    """The folder of images breaks down after the first shard; what the second call adds makes the shards of
    one uninterrupted call.
    """
    annotations, images = coco
    write_shards(CORPORA["coco"], [annotations], images, tmp_path / "whole", samples_per_shard=1)
    broken = images / "val2014" / f"COCO_val2014_{5:012d}.jpg"
    data = broken.read_bytes()
    broken.unlink()
    broken.symlink_to("/proc/self/mem")  # reading it fails as a broken disk does
    with pytest.raises(DataError, match=f"image '{broken}' cannot be read: Input/output error"):
        write_shards(CORPORA["coco"], [annotations], images, tmp_path / "out", samples_per_shard=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.tar", "00000_stats.json"]
    broken.unlink()
    broken.write_bytes(data)
    write_shards(CORPORA["coco"], [annotations], images, tmp_path / "out", samples_per_shard=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def test_a_row_that_names_no_file_that_could_exist_is_counted(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "there.jpg").write_bytes(encode(GREY, "jpeg"))
    names = ("x" * 300 + ".jpg", "loop.jpg", "nul\0.jpg", "there.jpg")
    rows = [json.dumps({"file_name": name, "text": "a dog"}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    counts = write_shards(CORPORA["own"], [tmp_path / "a.jsonl"], tmp_path, tmp_path / "out")
    assert (counts.samples, counts.dropped) == (1, {NO_FILE: 3})


def test_the_first_entries_that_are_left_out_are_named_for_each_reason(tmp_path, caplog):
    (tmp_path / "there.jpg").write_bytes(encode(GREY, "jpeg"))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "cut.jpg").write_bytes(encode(GREY, "jpeg")[:-20])
    rows = [f"gone{number}.jpg,a dog" for number in range(7)] + [
        "bad.jpg,a cat",
        "cut.jpg,a hen",
        "mute.jpg,",
        "there.jpg,a cow",
    ]
    (tmp_path / "a.csv").write_text("\n".join(["file_name,caption", *rows]))
    counts = write_shards(CORPORA["own"], [tmp_path / "a.csv"], tmp_path, tmp_path / "out")
    assert counts.dropped == {NO_FILE: 7, faults.UNDECODABLE: 1, faults.TRUNCATED: 1, NO_CAPTION: 1}
    said = [line for line in caplog.messages if "left out" in line]
    assert said == [
        *(f"own: left out 'gone{number}.jpg': no image file" for number in range(5)),
        "own: left out 'bad.jpg': undecodable (begins with 6e6f207069637475; only JPEG, PNG and WebP are "
        "decoded)",
        f"own: left out 'cut.jpg': truncated (JPEG of {len(encode(GREY, 'jpeg')) - 20} bytes, which end "
        "before its pixels)",
        "own: left out 'mute.jpg': empty caption",
    ]


def test_what_has_no_name_is_left_out_by_its_number_or_key(tmp_path, caplog):
    (tmp_path / "cc3m.tsv").write_text("a red car\thttp://x/1.jpg\n \thttp://x/2.jpg\n")
    write_urls(CORPORA["cc3m"], [tmp_path / "cc3m.tsv"], tmp_path / "urls.tsv")
    write_tar(tmp_path / "0.tar", [("a.txt", b"no picture")])
    filter_shards(CORPORA["coco"], str(tmp_path / "0.tar"), None)
    (tmp_path / "a.jsonl").write_text('{"text": "uno", "language": "es"}\n{"text": "one"}\n')
    write_shards(CORPORA["ccnews"], [tmp_path / "a.jsonl"], None, tmp_path / "out")
    assert [line for line in caplog.messages if "left out" in line] == [
        "cc3m: left out 'entry 2': empty caption",
        "coco: left out 'a': no image",
        "ccnews: left out 'entry 1': not English",
    ]


def test_missing_inputs_are_named(coco, tmp_path):
    annotations, images = coco
    with pytest.raises(DataError, match="folder of images '.*gone' does not exist; give --images"):
        write_shards(CORPORA["coco"], [annotations], tmp_path / "gone", tmp_path / "out")
    with pytest.raises(
        DataError,
        match=r"coco: '.*gone.json' does not exist; it should be captions_train2014.json",
    ):
        write_shards(CORPORA["coco"], [tmp_path / "gone.json"], images, tmp_path / "out")


def test_an_input_without_entries_is_called_empty(tmp_path):
    (tmp_path / "a.csv").write_text("file_name,caption\n")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(DataError, match="own: '.*a.csv' is empty: no entry to make a sample of"):
        write_shards(CORPORA["own"], [tmp_path / "a.csv"], tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="own_text: '.*b.jsonl', '.*b.jsonl' are empty: no entry"):
        write_shards(CORPORA["own_text"], [tmp_path / "b.jsonl"] * 2, None, tmp_path / "out")
    (tmp_path / "b.jsonl").write_text('{"title": "no text"}\n')
    with pytest.raises(DataError, match=r"own_text: none of 1 entries can be used \(empty caption 1\)$"):
        write_shards(CORPORA["own_text"], [tmp_path / "b.jsonl"], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_without_pictures_are_sent_to_their_command(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    for images, said in (
        (None, "the folder of images '' does not exist; .*"),
        (tmp_path, "'.*a.txt' is no table"),
    ):
        with pytest.raises(
            DataError, match=f"own: {said}.*texts without pictures are for `flava-ds prepare own_te"
        ):
            write_shards(CORPORA["own"], [tmp_path / "a.txt"], images, tmp_path / "out")


def test_images_and_text_alone(tmp_path):
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "train" / "n01440764" / "n01440764_1.JPEG").write_bytes(encode(GREY, "png"))
    counts = write_shards(CORPORA["imagenet"], [tmp_path / "train"], None, tmp_path / "imagenet")
    assert counts.samples == 1
    [[sample]] = iterate_once(reading(tmp_path / "imagenet", "image"), "read")
    assert record_of(tmp_path / "imagenet", sample.key) == {"wnid": "n01440764", "class": 0}
    assert sample.image.shape == (3, 20, 30)
    (tmp_path / "books.txt").write_text("One line .\nanother line .\n")
    write_shards(CORPORA["bookcorpus"], [tmp_path / "books.txt"], None, tmp_path / "books")
    [[sample]] = iterate_once(reading(tmp_path / "books", "text"), "read")
    assert sample.text == "One line . another line ."


@pytest.fixture
def downloaded(tmp_path):
    """Shards as img2dataset leaves them: 25 samples, one of them without caption, one with a web page for an
    image; members may be scattered.
    """
    pytest.importorskip("py3langid")
    members = [member for number in range(20) for member in pair_members([number])]
    meta = json.dumps(
        {
            "url": "http://x/1.jpg",
            "key": "000000020",
            "status": "success",
            "width": 16,
            "height": 16,
            "exif": "{}",
            "sha256": "0" * 64,
        }
    ).encode()
    members += [
        ("000000020.jpg", picture(20)),
        ("000000020.json", meta),
        ("000000021.jpg", b"<html>"),
        ("000000021.txt", b"a red car by the house"),
    ]
    members += [(f"{n:09d}.jpg", picture(n)) for n in (22, 23, 24)]
    members += [
        (f"{n:09d}.txt", text)
        for n, text in (
            (22, b"ein rotes Auto vor dem Haus"),
            (23, b"a car"),
            (24, b"a red car parked outside the house"),
        )
    ]
    (tmp_path / "downloaded").mkdir()
    write_tar(tmp_path / "downloaded" / "00000.tar", members)
    return str(tmp_path / "downloaded")


def test_downloaded_shards_are_counted_and_left_as_they_are(downloaded, tmp_path):
    before = sorted(path.name for path in (tmp_path / "downloaded").glob("*.tar"))
    counts = filter_shards(CORPORA["cc12m"], downloaded, None)
    assert (counts.entries, counts.samples) == (25, 23) and counts.dropped == {
        faults.MISSING_CAPTION: 1,
        faults.UNDECODABLE: 1,
    }
    assert (
        counts.words == 10 * 7 + 10 * 8 + 6 + 2 + 7
        and sorted(path.name for path in (tmp_path / "downloaded").glob("*.tar")) == before
    )


def test_downloaded_shards_are_filtered_without_touching_members(downloaded, tmp_path):
    counts = filter_shards(CORPORA["yfcc100m"], downloaded, tmp_path / "out", samples_per_shard=8)
    assert (
        counts.dropped[TOO_SHORT] == 1
        and counts.entries == 25
        and counts.samples == 25 - sum(counts.dropped.values())
    )
    old, new = (IndexedShards(reading(shards, "pair"), "read") for shards in (downloaded, tmp_path / "out"))
    reads = {old.table.key(index): old.read(index) for index in range(len(old))}
    assert len(new) == counts.samples and "000000024" in [new.table.key(index) for index in range(len(new))]
    assert all(new.read(index) == reads[new.table.key(index)] for index in range(len(new)))
    assert filter_shards(CORPORA["yfcc100m"], downloaded, tmp_path / "out", samples_per_shard=8) == counts


def test_downloaded_shards_with_damage_and_long_keys(tmp_path, caplog):
    """Samples behind the damage are lost without an entry to count; a key of 150 letters takes a header of
    its own.
    """
    long = "k" * 150
    shard = write_tar(
        tmp_path / "00000.tar",
        [(f"{long}.jpg", picture(1)), (f"{long}.txt", b"a red car"), *pair_members(range(5))],
        tarfile.GNU_FORMAT,
    )
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    counts = filter_shards(CORPORA["cc12m"], str(shard), tmp_path / "out")
    assert (
        counts.samples < 6
        and f"{shard}: truncated shard 1; the samples that the index leaves out are missing" in caplog.text
    )
    written = IndexedShards(reading(tmp_path / "out", "pair"), "read")
    assert written.table.key(0) == long and len(written) == counts.samples


def test_list_for_img2dataset_has_what_passes(tmp_path):
    (tmp_path / "cc3m.tsv").write_text(
        'a "red" car\thttp://x/1.jpg\n \thttp://x/2.jpg\na blue car\thttp://x/3.jpg\n'
    )
    counts = write_urls(CORPORA["cc3m"], [tmp_path / "cc3m.tsv"], tmp_path / "urls.tsv")
    with (tmp_path / "urls.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert (
        rows[0] == {"url": "http://x/1.jpg", "caption": 'a "red" car', "id": "cc3m-00000000"}
        and len(rows) == counts.samples == 2
    )
    with pytest.raises(DataError, match="coco: its published form has no list of URLs"):
        write_urls(CORPORA["coco"], [], tmp_path / "urls.tsv")


def test_list_that_breaks_off_leaves_nothing_behind(tmp_path):
    (tmp_path / "cc3m.tsv").write_text("a car\thttp://x/1.jpg\na car\n")
    with pytest.raises(DataError, match="row 2: 1 columns instead of 2"):
        write_urls(CORPORA["cc3m"], [tmp_path / "cc3m.tsv"], tmp_path / "new" / "urls.tsv")
    assert not list((tmp_path / "new").iterdir())
