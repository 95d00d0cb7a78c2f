"""`prepare check` on shards whose faults, copies and lengths are known."""

import json
import shutil

import numpy as np
import pytest
import torch
from data.shard_files import encode, write_tar
from data.test_skip_list import scene
from own_photos import write_texts

from flava_ds import cli
from flava_ds.config import Config, TrainingConfig
from flava_ds.errors import DataError
from flava_ds.prepare import check
from flava_ds.prepare.check import NEAR_BITS, Need, check_shards, describe, near_duplicates
from flava_ds.prepare.check_page import facts
from flava_ds.prepare.regions import encoded
from flava_ds.recipes import resolve
from flava_ds.regions.detector import load_detector
from flava_ds.storage import faults

SCENES = 40
PICTURE = encode(np.asarray(scene(1, 32, 32)), "jpeg")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards: 40 pictures, a copy of number 0, number 1 encoded anew, a cut file, a web page, and a
    caption of blanks.
    """
    folder = tmp_path_factory.mktemp("shards")
    pictures = [
        encode(np.asarray(scene(number, 60 + number, 40)), "jpeg", quality=95) for number in range(SCENES)
    ]
    extra = [
        pictures[0],
        encode(np.asarray(scene(1, 61, 40)), "jpeg", quality=85),
        pictures[2][:300],
        b"<html>",
        pictures[3],
    ]
    captions = ["a dog"] * SCENES + ["a dog", "a dog", "a dog", "a dog", " "]
    captions[5] = "dog " * 200
    samples = [
        (f"{number:04d}", data, text)
        for number, (data, text) in enumerate(zip(pictures + extra, captions, strict=True))
    ]
    for shard, part in enumerate((samples[:30], samples[30:])):
        write_tar(
            folder / f"{shard:05d}.tar",
            [
                member
                for key, data, text in part
                for member in ((f"{key}.jpg", data), (f"{key}.txt", text.encode()))
            ],
        )
    return str(folder)


@pytest.fixture(scope="module")
def found(shards):
    """The check for one slow GPU, timed briefly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "_TIMED_S", 0.2)
        return check_shards(shards, Need(gpus=1, images_per_second_per_gpu=0.5))


def test_counts_are_exact(found):
    assert (found.kind, found.shards, found.samples, found.samples_per_shard) == ("pair", 2, 45, [30, 15])
    assert found.members == {"jpg": 45, "txt": 45} and found.read == 45 and found.formats == {"JPEG": 42}
    assert (
        found.bad == {faults.UNDECODABLE: 1, faults.TRUNCATED: 1, faults.EMPTY_CAPTION: 1}
        and len(found.bad_examples) == 3
        and "'0042' in " in found.bad_examples[0]
    )


def test_lengths_are_those_of_the_tokenizer_and_the_pictures(found):
    assert sorted(found.token_lengths) == [4] * 41 + [202] and found.max_tokens == 77
    assert sorted(found.sizes)[:3] == [(60, 40), (60, 40), (61, 40)] and max(found.aspect_ratios) == 99 / 40


def test_copies_are_told_from_pictures_that_look_alike(found):
    assert found.same_bytes == [["0000", "0040"]] and found.look_alike == [["0001", "0041"]]


def test_speed_is_compared_with_the_need(found, shards):
    assert found.samples_per_second == found.samples_per_core_second * found.cores > 0.5
    verdicts = dict((text.split(" ")[0], good) for good, text in found.verdicts)
    assert verdicts["this"] and not verdicts["6.67%"] and not verdicts["4.44%"]
    found.need = Need(gpus=64, images_per_second_per_gpu=1e6)
    hungry = {text.split(" ")[0]: (good, text) for good, text in check._judge(found)}
    assert not hungry["this"][0] and "64 GPUs need 64,000,000, the work of " in hungry["this"][1]
    found.need = Need(gpus=1, images_per_second_per_gpu=0.5)


def test_text_and_json_say_the_same(found):
    text, saved = describe(found), json.loads(found.as_json())
    assert (
        "45 pair samples in 2 shards" in text
        and "LOOK  6.67% of the samples read are unusable (empty caption 1, truncated 1, undecodable 1)"
        in text
    )
    assert (
        saved["samples"] == 45
        and saved["bad"] == found.bad
        and saved["need"]["gpus"] == 1
        and saved["samples_per_second"] == found.samples_per_second
    )


def test_what_was_left_out_before_is_repeated(shards, found, tmp_path, monkeypatch):
    assert found.left_out == {} and "they were written" not in describe(found)
    monkeypatch.setattr(check, "_TIMED_S", 0.1)
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / "00001_stats.json").write_text('{"status_dict": {"success": 15, "no text": 3}}')
    again = check_shards(str(folder), Need(gpus=1, images_per_second_per_gpu=0.5), most=2)
    assert again.left_out == {"no text": 3}
    assert "left out when they were written: no text 3\n" in describe(again)
    assert facts(again)["Left out before"] == [("no text", "3")]


def test_what_would_end_a_run_is_an_error(shards, tmp_path, monkeypatch, capsys):
    """Of 45 samples 3 are unusable, and all are too few for flava_base; of 100, 10 have no caption."""
    monkeypatch.setattr(check, "_TIMED_S", 1e-9)
    need = Need(gpus=1, images_per_second_per_gpu=0.5)
    fitting = Config(name="fitting", training=TrainingConfig(global_batch_size=16))
    monkeypatch.setattr(
        check, "resolve", lambda recipe, words: fitting if recipe == "x" else resolve(recipe, words)
    )
    [stop] = check_shards(shards, need, recipe="x").stops
    assert "3 of 45 samples read (6.7%) are unusable, more than max_skipped_share 0.05" in stop
    assert check_shards(shards, need, recipe="x", most=5).stops == []  # too few to tell
    assert cli.main(["prepare", "check", shards, "--gpus", "1", "--samples", "5"]) == 1
    said = capsys.readouterr().out
    assert "STOP  a run of flava_base would end with: source 'pmd': 45 usable samples" in said
    assert "are fewer than the 8192 of one step over all ranks" in said
    for name, texts, expected in (
        ("blank", [b"a dog"] * 90 + [b" "] * 10, "10 of 100 samples read (10.0%) are unusable, more than"),
        (
            "without",
            [b"a dog"] * 90 + [None] * 10,
            "90 usable samples in 1 shard; not usable: missing caption 10",
        ),
    ):
        members = [
            member
            for key, text in enumerate(texts)
            for member in ((f"{key:03d}.jpg", PICTURE), (f"{key:03d}.txt", text))
            if member[1] is not None
        ]
        write_tar(tmp_path / f"{name}.tar", members)
        [stop] = check_shards(str(tmp_path / f"{name}.tar"), need, recipe="x").stops
        assert expected in stop and "max_skipped_share 0.05" in stop, stop


def test_only_some_are_read(shards, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_S", 1e-9)
    found = check_shards(shards, Need(gpus=1, images_per_second_per_gpu=1), most=5)
    assert found.read == 5 and "as far as both were read: --samples 0 reads all" in describe(found)


def test_damaged_shards_are_named_and_equal_keys_of_two_shards_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_S", 1e-9)
    pictures = [encode(np.asarray(scene(0, 60, 40)), "jpeg", quality=quality) for quality in (95, 95, 85)]
    for number, data in enumerate(pictures):
        write_tar(tmp_path / f"{number}.tar", [("a.jpg", data), ("a.txt", b"a dog"), ("b.txt", b"cut off")])
    cut = tmp_path / "2.tar"
    cut.write_bytes(cut.read_bytes().rstrip(b"\0")[:-3])
    found = check_shards(str(tmp_path), Need(gpus=1, images_per_second_per_gpu=1))
    assert found.same_bytes == [["a", f"'a' in {tmp_path}/1.tar"]] and found.look_alike == [
        ["a", f"'a' in {tmp_path}/2.tar"]
    ]
    assert f"{cut}: truncated shard 1" in describe(found)
    assert (
        found.volume.endswith(" MiB")
        and "steps at a global batch" in describe(found)
        and " is 0.0 steps" not in describe(found)
    )


def test_shards_without_a_usable_sample_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.jpg", b"<html>"), ("a.txt", b"a dog")])
    with pytest.raises(DataError, match="none of 1 samples in .* is usable: undecodable 1; e.g. 'a' in "):
        check_shards(str(tmp_path), Need(gpus=1, images_per_second_per_gpu=1))


def test_near_duplicates_agree_with_comparing_all_pairs():
    random = np.random.default_rng(0)
    hashes = {}
    for number in range(60):
        value = int(random.integers(0, 2**63))
        for copy in range(3):
            flipped = random.choice(64, size=int(random.integers(0, 6)), replace=False) if copy else []
            hashes[f"{number}.{copy}"] = value ^ sum(1 << int(bit) for bit in flipped)
    expected: dict[str, list[str]] = {}
    for key, value in hashes.items():
        first = next((other for other in expected if bin(hashes[other] ^ value).count("1") <= NEAR_BITS), key)
        expected.setdefault(first, []).append(key)
    assert near_duplicates(hashes) == [keys for keys in expected.values() if len(keys) > 1]
    assert near_duplicates(hashes, {"0.0"}) != near_duplicates(hashes)


def test_the_share_of_cut_texts_is_right_above_512_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_S", 1e-9)
    write_texts(tmp_path / "0.tar", [100, 510, 511, 900])  # and two special tokens each
    found = check_shards(str(tmp_path), Need(gpus=1, images_per_second_per_gpu=1))
    assert sorted(found.token_lengths) == [102, 512, 513, 902] and found.max_tokens == 512
    assert "50.00% of the captions are longer than max_tokens 512 and will be truncated" in describe(found)


def test_regions_are_read_in_place_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_TIMED_S", 0.01)
    detector = load_detector("demo")
    pictures = torch.randint(0, 256, (6, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator())
    members = []
    for number, own in enumerate(encoded(detector, detector(pictures))):
        own = b"junk" if number == 5 else own
        members += [(f"{number}.jpg", b"no picture"), (f"{number}.txt", f"a dog {number}".encode())]
        members += [(f"{number}.regions.safetensors", own)]
    shard = write_tar(tmp_path / "0.tar", members)
    found = check_shards(str(shard), Need(gpus=1, images_per_second_per_gpu=0.5), recipe="demo_vinvl")
    assert found.kind == "pair" and found.bad == {faults.BAD_REGIONS: 1} and not found.formats
    assert len(found.regions) == 5 and 1 <= min(found.regions) and max(found.regions) <= 9
    assert "regions of an image: least" in describe(found) and "bad regions (4 bytes" in describe(found)
