"""The published layouts are read as torchvision reads them, probed from end to end, and what is missing or
damaged is named.
"""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from evaluation.color_world import color_model
from evaluation.miniature_files import mat, save, text
from evaluation.published_world import WRITERS
from evaluation.torchvision_oracle import ORACLE, torchvision_reads

from flava_ds.errors import DataError, UserError
from flava_ds.evaluation.datasets.published_images import PublishedImages, idx_of
from flava_ds.evaluation.paper_table import ROWS
from flava_ds.evaluation.registry import find, tasks
from flava_ds.evaluation.runner import evaluate, find_all, find_data
from flava_ds.evaluation.tasks import clevr_counts, eurosat, sun397
from flava_ds.prepare.fetchable import SETS

PROBES = sorted(name for name in WRITERS if name != "winoground")
FETCHED = sorted({packaged.tasks[0] for packaged in SETS.values()})
SIZE = re.compile(r"\((about |13 and )?\d+(\.\d+)? [MG]B")
VARIANTS = [
    (name, variant.name)
    for name in PROBES
    if isinstance(data := tasks()[f"{name}_probe"].data, PublishedImages)
    for variant in data.variants[1:]
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All data sets but PCAM, which needs h5py."""
    root = tmp_path_factory.mktemp("published")
    for name, write in WRITERS.items():
        if name != "pcam":
            write(root)
    return root


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(eurosat, "TRAIN", 5)
    monkeypatch.setattr(eurosat, "TEST", 3)


@pytest.fixture
def at(root, tmp_path):
    """Where a data set lies."""

    def of(name):
        if name != "pcam":
            return root
        pytest.importorskip("h5py")
        WRITERS["pcam"](tmp_path)
        return tmp_path

    return of


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_reads_the_colours_of_a_published_layout(name, at):
    found = find([f"{name}_probe"])
    scores = evaluate(found, color_model(), find_all(found, at(name)))[f"{name}_probe"].scores
    assert scores["accuracy"].value == 1 and scores["mean_per_class_accuracy"].value == 1
    low, high = scores["accuracy"].interval
    assert 0 < low < high == pytest.approx(1)


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_every_way_to_split_a_data_set_is_probed(name, variant, root):
    [task] = find([f"{name}_probe"])
    other = dataclasses.replace(task, data=task.data.with_variant(variant))
    result = evaluate([other], color_model(), find_all([other], root))[task.name]
    assert result.scores["accuracy"].value == 1 and result.facts["splits"] == variant
    with pytest.raises(UserError, match=f"{name} has no splits 'clipp'"):
        task.data.with_variant("clipp")


@pytest.mark.parametrize("name, split", ORACLE)
def test_torchvision_lists_the_same_pictures_with_the_same_classes(name, split, root, monkeypatch):
    for module in ("cifar", "flowers102", "fer2013"):  # a miniature has another checksum
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_, **__: True)
    data = tasks()[f"{name}_probe"].data
    ours, theirs = data.read(root / data.folder, split), torchvision_reads(name, root, split)
    assert len(ours) == len(theirs)
    if isinstance(theirs[0][0], str):
        theirs_by_end = {file: label for file, label in theirs}
        for key, label in zip(ours.keys, ours.labels, strict=True):
            [file] = [file for file in theirs_by_end if file.endswith(f"/{key}")]
            assert theirs_by_end[file] == label
        return
    for row, (pixels, label) in enumerate(theirs):
        colour = torch.from_numpy(pixels).permute(2, 0, 1) if pixels.ndim == 3 else torch.from_numpy(pixels)
        assert torch.equal(ours.load(row), colour.expand(3, *colour.shape[-2:])) and ours.labels[row] == label


def test_stl10_has_the_rows_and_folds_that_torchvision_reads(root, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_, **__: True)
    data = tasks()["stl10_probe"].data
    ours = data.read(root / data.folder, "test")
    for number, fold in enumerate(ours.folds):
        theirs = tv.STL10(root, "train", folds=number)
        assert ours.labels[fold.train].tolist() == theirs.labels.tolist() and len(theirs) == 14
        np.testing.assert_array_equal(ours.load(int(fold.train[3])).numpy(), theirs.data[3])
        assert len(fold.test) == 9 and set(fold.test).isdisjoint(fold.train)
    picture = np.asarray(tv.STL10(root, "test")[2][0])
    np.testing.assert_array_equal(ours.load(18 + 2).permute(1, 2, 0).numpy(), picture)


def test_a_limit_keeps_the_folds_within_what_it_leaves(root):
    data = tasks()["stl10_probe"].data
    whole, cut = data.read(root / data.folder, "test"), find_data(data, root, limit=9).test()
    assert len(cut) == 9
    for before, after in zip(whole.folds, cut.folds, strict=True):
        assert {cut.keys[row] for row in after.train} == {whole.keys[row] for row in before.train} & set(
            cut.keys
        )


def test_films_of_kitti_stay_together_and_the_draw_is_numpys(root):
    data = tasks()["kitti_probe"].data.with_variant("vtab")
    film = dict(enumerate(np.random.default_rng(0).permutation(40) // 4))
    found = {
        split: {int(film[int(key[:6])]) for key in data.read(root / data.folder, split).keys}
        for split in ("test", "val", "train")
    }
    assert [len(films) for films in found.values()] == [1, 1, 8]
    assert not found["test"] & found["val"] and len(set.union(*found.values())) == 10
    names = [f"2011_09_26_drive_{n:04d}_sync" for n in range(10)]
    np.random.seed(123)  # as TensorFlow Datasets draws it
    assert names.index(np.random.choice(names, 1, replace=False)[0]) in found["test"]


def test_a_distance_on_the_edge_belongs_to_the_nearer_class(tmp_path):
    from flava_ds.evaluation.tasks.kitti import VTAB_METRES, distance_class

    for z, number in (("8.00", 1), ("8.01", 2), ("20.00", 2), ("20.01", 3)):
        text(tmp_path / "0.txt", f"Truck 0 0 0 1 1 2 2 1 1 1 0 0 {z} 0", "Tram 0 0 0 1 1 2 2 1 1 1 0 0 1.0 0")
        assert distance_class(tmp_path / "0.txt") == distance_class(tmp_path / "0.txt", VTAB_METRES) == number
    text(tmp_path / "0.txt", "Car 0 0 0 1 1 2 2 1 1 1 0 0 -0.50 0", "Van 0 0 0 1 1 2 2 1 1 1 0 0 15.0 0")
    assert distance_class(tmp_path / "0.txt") == 0 and distance_class(tmp_path / "0.txt", VTAB_METRES) == 1
    text(tmp_path / "0.txt", "Tram 0 0 0 1 1 2 2 1 1 1 0 0 1.0 0")
    assert distance_class(tmp_path / "0.txt") == distance_class(tmp_path / "0.txt", VTAB_METRES) == 0
    text(tmp_path / "0.txt", "Car 0 0")
    with pytest.raises(DataError, match="0.txt: no boxes of KITTI"):
        distance_class(tmp_path / "0.txt")


def test_splits_do_not_overlap_and_take_what_they_say(root):
    for name, sizes in (("sun397", [6, 3, 21]), ("caltech101", [15, 90]), ("eurosat", [9, 15])):
        data = tasks()[f"{name}_probe"].data
        splits = [set(data.read(root / data.folder, split).keys) for split in data.splits]
        assert [len(keys) for keys in splits] == sizes and len(set.union(*splits)) == sum(sizes)
    assert clevr_counts.CLIP_SIZES == {"test": 500, "train": 2000}
    halves = sun397.DATA.with_variant("clip").read(root / "SUN397", "test")
    assert len(halves) == 30 and [len(fold.test) for fold in halves.folds] == [15] * 10


@pytest.mark.parametrize("name", [*sorted({row.task for row in ROWS}), "winoground_matching", *FETCHED])
def test_missing_data_is_one_line_with_size_licence_source_and_folders(name, tmp_path):
    data = tasks()[name].data
    with pytest.raises(DataError) as missing:
        find_data(data, tmp_path)
    message = str(missing.value)
    assert "\n" not in message and data.licence in message and data.layout in message
    assert str(tmp_path / data.folder) in message and (size := SIZE.search(message))
    assert data.name not in SETS or size.group() in SETS[data.name].title


DAMAGES = {
    "a picture is missing": (
        "food101",
        "food-101/images/red/test1.jpg",
        None,
        r"test.json lists red/test1.jpg",
    ),
    "a list is damaged": ("food101", "food-101/meta/test.json", b"{", "test.json: not readable as JSON"),
    "labels are missing": (
        "mnist",
        "MNIST/raw/t10k-labels-idx1-ubyte",
        b"\0\0\x08\1\0\0\0\1",
        "not an idx file",
    ),
    "an unknown class": (
        "fgvc_aircraft",
        "fgvc-aircraft-2013b/data/variants.txt",
        b"blue 100\ngreen 100\n",
        "names the class 'red 100'",
    ),
    "a file without labels": (
        "fer2013",
        "fer2013/icml_face_data.csv",
        b"pixels\n1 2 3\n",
        "face 0 of test has no emotion.*test.csv has no labels",
    ),
    "a class beyond the names": (
        "stl10",
        "stl10_binary/class_names.txt",
        b"blue\ngreen\n",
        "has class 2, but stl10 has 2 classes",
    ),
    "no devkit": (
        "imagenet",
        "imagenet/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
        None,
        "pictures without labels; unpack ILSVRC2012_devkit",
    ),
    "a damaged MATLAB file": ("flowers102", "flowers-102/setid.mat", b"MATLAB", "not a MATLAB file"),
    "a folder that is no class": (
        "gtsrb",
        "gtsrb/GTSRB/Training/readme/1.ppm",
        b"",
        "names the class 'readme', which is none of the 43",
    ),
    "a list of another kind": (
        "food101",
        "food-101/meta/train.json",
        b"[1]",
        "train.json: does not map each class to its pictures",
    ),
    "a line without a class": (
        "fgvc_aircraft",
        "fgvc-aircraft-2013b/data/images_variant_test.txt",
        b"0034309\n",
        "the line '0034309' is not a picture and its variant",
    ),
    "folds without numbers": ("stl10", "stl10_binary/fold_indices.txt", b"a b\n", "not lines of numbers"),
    "labels of other pictures": (
        "gtsrb",
        "gtsrb/GT-final_test.csv",
        b"Filename;Width\n0.ppm;3\n",
        "no columns Filename and ClassId",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_is_named(what, tmp_path):
    name, file, content, words = DAMAGES[what]
    WRITERS[name](tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    found = find_data(tasks()[f"{name}_probe"].data, tmp_path)
    with pytest.raises(DataError, match=words):
        found.test(), found.read("train")


GARBAGE = (b"", b"garbage\n1,2 x\n", b"\xff\xfe\0", b"[1]", b'{"a": 1}', b'[{"a": 1}]', b"0\n")


@pytest.mark.parametrize("name", PROBES)
def test_whatever_a_list_holds_is_at_most_one_line(name, tmp_path):
    """Any other error than UserError fails here; content that can be read is no error."""
    WRITERS[name](tmp_path)
    data = tasks()[f"{name}_probe"].data
    pictures = (".jpg", ".png", ".ppm", ".jpeg")
    lists = [file for file in sorted(tmp_path.rglob("*")) if file.suffix.lower() not in pictures]
    for file in (file for file in lists if file.is_file()):
        kept = file.read_bytes()
        for content in GARBAGE:
            file.write_bytes(content)
            for split in data.splits:
                try:
                    find_data(data, tmp_path).read(split)
                except UserError as error:
                    assert "\n" not in str(error)
        file.write_bytes(kept)


def test_test_annotations_of_the_cars_without_labels_are_refused(tmp_path):
    WRITERS["stanford_cars"](tmp_path)
    rows = np.array([("00000.jpg", 1), ("00001.jpg", 2)], dtype=[("fname", "O"), ("bbox_x1", "O")])
    mat(tmp_path / "stanford_cars/cars_test_annos_withlabels.mat", annotations=rows)
    with pytest.raises(DataError, match="has no labels; get cars_test_annos_withlabels.mat"):
        find_data(tasks()["stanford_cars_probe"].data, tmp_path).test()


def test_a_class_that_the_training_split_lacks_is_named(tmp_path):
    WRITERS["country211"](tmp_path)
    for split in ("valid", "test"):
        save(tmp_path / f"country211/{split}/ZZ/1.jpg", "red", 1)
    (tmp_path / "country211/train/ZZ").mkdir()
    found = find(["country211_probe"])
    with pytest.raises(DataError, match="ZZ: no pictures"):
        evaluate(found, color_model(), find_all(found, tmp_path))
    # Without the whole folder, the numbers of the classes after it must not slide into its place.
    (tmp_path / "country211/train/ZZ").rmdir()
    save(tmp_path / "country211/train/aa/1.jpg", "blue", 1)
    with pytest.raises(DataError, match="the training split has no sample of class 'ZZ' .1 such class"):
        evaluate(found, color_model(), find_all(found, tmp_path))
    WRITERS["food101"](tmp_path)
    listed = tmp_path / "food-101/meta/train.json"
    listed.write_text(json.dumps({k: v for k, v in json.loads(listed.read_text()).items() if k != "blue"}))
    WRITERS["dtd"](tmp_path)
    for name in ("train1.txt", "val1.txt"):
        file = tmp_path / "dtd/dtd/labels" / name
        kept = [line for line in file.read_text().splitlines() if not line.startswith("blue")]
        file.write_text("\n".join(kept))
    for name in ("food101_probe", "dtd_probe"):
        found = find([name])
        with pytest.raises(DataError, match="the training split has no sample of class 'blue'"):
            evaluate(found, color_model(), find_all(found, tmp_path))
    WRITERS["clevr_counts"](tmp_path)
    scenes = tmp_path / "clevr/CLEVR_v1.0/scenes/CLEVR_train_scenes.json"
    kept = [scene for scene in json.loads(scenes.read_text())["scenes"] if len(scene["objects"]) != 4]
    scenes.write_text(json.dumps({"scenes": kept}))
    found = find(["clevr_counts_probe"])
    with pytest.raises(DataError, match="the training split has no sample of class '4'"):
        evaluate(found, color_model(), find_all(found, tmp_path))
    evaluate(found, color_model(), find_all(found, tmp_path, limit=6))  # which a limit may have cut away


def test_idx_has_any_number_of_axes(tmp_path):
    (tmp_path / "x").write_bytes(b"\0\0\x08\2\0\0\0\2\0\0\0\3" + bytes(range(6)))
    assert idx_of(tmp_path / "x").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_formats_that_the_training_decoder_does_not_read_go_to_pillow(tmp_path):
    from PIL import Image

    from flava_ds.evaluation.datasets.published_images import read_picture

    Image.new("RGB", (3, 2), (9, 8, 7)).save(tmp_path / "gif.jpg", "GIF")
    picture = read_picture(tmp_path / "gif.jpg")
    assert picture.shape == (3, 2, 3) and picture[:, 0, 0].tolist() == [9, 8, 7]
    (tmp_path / "none.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match="none.jpg: no picture"):
        read_picture(tmp_path / "none.jpg")


def test_prompts_of_imagenet_come_from_files_or_from_open_clip(tmp_path):
    WRITERS["imagenet"](tmp_path)
    folder, data = tmp_path / "imagenet", tasks()["imagenet_zero_shot"].data
    given = data.read(folder, "test")
    assert given.class_names == ("blue", "green", "red") and given.templates == ("a {} thing.", "the {}.")
    assert given.labels.tolist() == [0, 1, 2] * 3  # whatever the devkit's numbers
    open_clip = pytest.importorskip("open_clip")
    (folder / "templates.txt").unlink()
    known = data.read(folder, "test")
    assert known.class_names == ("blue", "green", "red") and len(known.templates) == 80
    assert known.templates[0].format("x") == open_clip.OPENAI_IMAGENET_TEMPLATES[0]("x")
    (folder / "classes.json").unlink()
    with pytest.raises(DataError, match="3 classes, but open_clip names ImageNet's 1000; write classes.json"):
        data.read(folder, "test")
