"""The demo data set is what it says it is: intact, small, plain, and with nothing held out leaking into
training.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from flava_ds.demo import dataset
from flava_ds.demo.concepts import family_words, forbidden_phrases, names_any, plain_label
from flava_ds.errors import DataError
from flava_ds.storage.files import CACHE_VARIABLE

TRAIN_STYLES = {"noto", "twemoji", "emojione", "emojione-monotone", "fxemoji", "streamline-emojis"}
UNSEEN_STYLES = {"fluent-emoji-flat", "fluent-emoji-high-contrast"}
PAIR_FOLDERS = ("pairs-train", "pairs-unseen-style", "pairs-unseen-concepts")
PAIR_FIELDS = {
    "concept", "label", "tags", "group", "subgroup", "family", "hexcode", "style", "set", "license",
    "attribution", "captions",
}  # fmt: skip
IMAGE_FIELDS = {"title", "category", "tags", "creator", "set", "license", "attribution"}
TEXT_FIELDS = {"word", "category", "set", "license"}
CHECKSUMS = json.loads(dataset.CHECKSUMS.read_text("utf-8"))


def read_folder(folder: Path) -> dict[str, dict[str, bytes]]:
    """Read every shard of a folder into key -> suffix -> bytes, and refuse a key that appears twice."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.iterdir()):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, suffix = member.name.rsplit(".", 1)
                sample = samples.setdefault(key, {})
                assert suffix not in sample, f"{shard}: {member.name} twice"
                sample[suffix] = tar.extractfile(member).read()
    return samples


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return dataset.unpack(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture(scope="session")
def folders(data) -> dict[str, dict[str, dict[str, bytes]]]:
    return {name: read_folder(data / name) for name in CHECKSUMS["samples"]}


@pytest.fixture(scope="session")
def records(folders) -> dict[str, list[dict]]:
    return {
        name: [json.loads(sample["json"]) for sample in samples.values()] for name, samples in folders.items()
    }


@pytest.fixture(scope="session")
def concepts(data) -> list[dict]:
    return json.loads((data / "concepts.json").read_text("utf-8"))


def test_archives_are_small():
    sizes = [(dataset.PACKAGE / "data" / name).stat().st_size for name in CHECKSUMS["archives"]]
    assert sum(sizes) < 16_000_000
    assert {path.name for path in (dataset.PACKAGE / "data").iterdir()} == set(CHECKSUMS["archives"])


def test_second_unpack_only_looks(data, monkeypatch):
    monkeypatch.setattr(dataset, "_extract", lambda staging: pytest.fail("extracted twice"))
    assert dataset.unpack(data) == data
    assert all((data / name).exists() for name in CHECKSUMS["files"])
    # no staging folder stays behind
    assert [path.name for path in data.parent.iterdir()] == [data.name]


def test_damaged_archive_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in CHECKSUMS["archives"]:
        (tmp_path / "data" / name).write_bytes(b"not an archive")
    monkeypatch.setattr(dataset, "PACKAGE", tmp_path)
    with pytest.raises(DataError, match="damaged"):
        dataset.unpack(tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_folder_has_the_permissions_of_any_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_extract", lambda staging: None)
    for mask, expected in ((0o022, 0o755), (0o077, 0o700)):
        before = os.umask(mask)
        try:
            assert dataset.unpack(tmp_path / str(mask)).stat().st_mode & 0o777 == expected
        finally:
            os.umask(before)


def test_foreign_folder_is_refused(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    monkeypatch.setattr(dataset, "_extract", lambda staging: None)
    with pytest.raises(DataError, match="remove it"):
        dataset.unpack(target)
    assert (target / "mine.txt").read_text() == "precious"


def test_slower_process_takes_the_faster_ones_folder(tmp_path, monkeypatch):
    target = tmp_path / "target"

    def extract_while_another_finishes(staging: Path) -> None:
        target.mkdir()
        (target / dataset.CHECKSUMS.name).write_bytes(dataset.CHECKSUMS.read_bytes())

    monkeypatch.setattr(dataset, "_extract", extract_while_another_finishes)
    assert dataset.unpack(target) == target
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert dataset.default_target().parent == tmp_path


def test_import_loads_no_torch():
    code = (
        "import sys, flava_ds.demo.dataset; assert not {'torch', 'tokenizers', 'resvg_py'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_python_without_filters_for_archives_unpacks_it(tmp_path, monkeypatch):
    """3.11.2 has none, and Debian 12 has 3.11.2."""
    extract = tarfile.TarFile.extract
    monkeypatch.setattr(
        tarfile.TarFile, "extract", lambda tar, member, path="", set_attrs=True: extract(tar, member, path)
    )
    assert (dataset.unpack(tmp_path / "data") / "pairs-train").is_dir()


def test_counts(folders, records):
    assert {name: len(samples) for name, samples in folders.items()} == CHECKSUMS["samples"]
    assert len(records["pairs-train"]) > 6000 and len(records["pairs-unseen-style"]) > 2500
    assert len(records["images"]) > 2500 and len(records["text"]) > 20_000


def test_every_picture_is_64_pixels_rgb(folders):
    for name in (*PAIR_FOLDERS, "images"):
        for key, sample in folders[name].items():
            picture = Image.open(io.BytesIO(sample["webp"]))
            picture.load()
            assert (picture.format, picture.size, picture.mode) == ("WEBP", (64, 64), "RGB"), f"{name}/{key}"


@pytest.mark.parametrize(
    ("names", "suffixes", "fields"),
    [
        (PAIR_FOLDERS, {"webp", "txt", "json"}, PAIR_FIELDS),
        (("images",), {"webp", "txt", "json"}, IMAGE_FIELDS),
        (("text", "text-test"), {"txt", "json"}, TEXT_FIELDS),
    ],
)
def test_every_sample_is_complete_and_plain(folders, names, suffixes, fields):
    for name in names:
        for key, sample in folders[name].items():
            record = json.loads(sample["json"])
            assert set(sample) == suffixes and set(record) == fields, f"{name}/{key}"
            assert sample["txt"].decode().strip(), f"{name}/{key}"
            for field, value in record.items():
                values = value if isinstance(value, list) else [value]
                assert all(isinstance(part, str) and part.strip() for part in values), (
                    f"{name}/{key}: {field}"
                )


def test_no_sample_carries_a_mail_address(folders):
    assert [
        key
        for name in folders
        for key, sample in folders[name].items()
        if re.search(rb"\w@\w+[.]\w", sample["json"])
    ] == []


def test_captions(folders):
    named = total = 0
    for name in PAIR_FOLDERS:
        for key, sample in folders[name].items():
            record = json.loads(sample["json"])
            captions = record["captions"]
            assert 6 <= len(captions) <= 10 and len(set(captions)) == len(captions), key
            assert captions[0] == sample["txt"].decode() and record["label"] in captions[0], key
            named += sum(record["label"] in caption for caption in captions)
            total += len(captions)
    assert named / total > 0.8


def test_styles_are_where_they_belong(records):
    assert {record["style"] for record in records["pairs-train"]} == TRAIN_STYLES
    assert {record["style"] for record in records["pairs-unseen-style"]} == UNSEEN_STYLES
    assert {record["style"] for record in records["pairs-unseen-concepts"]} == TRAIN_STYLES | UNSEEN_STYLES


def test_held_out_concepts_and_families_never_train(records, concepts):
    seen = {concept["concept"] for concept in concepts if concept["seen"]}
    held_out = {concept["concept"] for concept in concepts if not concept["seen"]}
    assert {record["concept"] for record in records["pairs-train"]} == seen
    assert {record["concept"] for record in records["pairs-unseen-style"]} <= seen
    assert {record["concept"] for record in records["pairs-unseen-concepts"]} == held_out
    families = {name: {record["family"] for record in records[name]} for name in PAIR_FOLDERS}
    assert not families["pairs-train"] & families["pairs-unseen-concepts"]
    assert 0.08 < len(held_out) / len(concepts) < 0.11
    groups = Counter(concept["group"] for concept in concepts)
    held_out_groups = Counter(concept["group"] for concept in concepts if not concept["seen"])
    assert all(0.07 < held_out_groups[group] / groups[group] < 0.13 for group in groups)


def test_held_out_labels_are_never_told_beside_a_training_picture(records, concepts):
    forbidden = forbidden_phrases(concept["label"] for concept in concepts if not concept["seen"])
    told = [
        text
        for record in records["pairs-train"]
        for text in (record["label"], *record["tags"], *record["captions"])
    ]
    told += [text for record in records["images"] for text in (record["title"], *record["tags"])]
    assert [text for text in sorted(set(told)) if names_any(text, forbidden)] == []


def test_test_glosses_have_words_of_their_own(records):
    words = {name: {record["word"].lower() for record in records[name]} for name in ("text", "text-test")}
    assert not words["text"] & words["text-test"]
    assert (
        len({record["category"] for record in records["text-test"] if record["category"].startswith("noun.")})
        > 20
    )


def test_vocabulary():
    for path, size, ids in (
        (dataset.PACKAGE / "vocab.txt", 4096, {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}),
        (
            dataset.PACKAGE.parent / "data" / "vocab" / "bert_base_uncased.txt",
            30_522,
            {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103},
        ),
    ):
        tokens = path.read_text("utf-8").splitlines()
        assert len(tokens) == len(set(tokens)) == size
        assert {token: tokens.index(token) for token in ids} == ids


@pytest.mark.parametrize(
    ("labels", "family"),
    [
        (("health worker", "man health worker", "woman health worker"), "health-worker"),
        (("twelve o’clock", "ten-thirty"), "clock-face"),
        (("man", "woman: red hair", "person: beard"), "person"),
        (("red circle", "blue circle"), "circle"),
        (("flag: Chad",), "flag-chad"),
    ],
)
def test_family_rule(labels, family):
    assert {family_words(label) for label in labels} == {family}


def test_labels_are_written_as_one_says_them():
    assert plain_label("flag: France") == "flag of France"
    assert plain_label("man: red hair") == "man with red hair"
    assert plain_label("keycap: 1") == "keycap 1"
    assert names_any("a cold face", frozenset({" cold face "}))
    assert not names_any("cold, face", frozenset({" cold face "}))
