"""One folder per class: what is read, and what is said about folders that are laid out otherwise."""

import json

import pytest
from evaluation.color_world import COLORS, png, write_image_folder

from flava_ds.errors import DataError
from flava_ds.evaluation.datasets.image_folder import ImageFolder, class_names
from flava_ds.evaluation.labelled import DEFAULT_TEMPLATES

DATA = ImageFolder()


def test_classes_are_the_folders_in_order(tmp_path):
    write_image_folder(tmp_path, {"test": 2, "train": 3})
    samples = DATA.read(tmp_path, "test")
    assert samples.class_names == COLORS and samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.keys[2] == "green/0.png" and samples.load(2) == png("green", 2)
    assert samples.templates == DEFAULT_TEMPLATES and len(DATA.read(tmp_path, "train")) == 9
    assert DATA.is_here(tmp_path) and DATA.is_here(tmp_path, "train") and not DATA.is_here(tmp_path, "val")


def test_a_folder_means_the_same_class_in_every_split(tmp_path):
    write_image_folder(tmp_path, {"test": 1, "train": 1})
    (tmp_path / "train" / "green").rename(tmp_path / "train" / "yellow")
    train, test = (DATA.read(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("blue", "green", "red", "yellow")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 2, 3], [0, 1, 2])


def test_names_and_templates_may_lie_beside(tmp_path):
    write_image_folder(tmp_path, {"test": 1})
    (tmp_path / "classes.json").write_text(json.dumps({"blue": "azure", "green": "lime", "red": "crimson"}))
    (tmp_path / "templates.txt").write_text("a {} thing\n\nsome {}\n")
    samples = DATA.read(tmp_path, "test")
    assert samples.class_names == ("azure", "lime", "crimson") and samples.templates == (
        "a {} thing",
        "some {}",
    )
    assert samples.unnamed == ""
    (tmp_path / "test" / "dark_red").mkdir()
    (tmp_path / "test" / "dark_red" / "x.JPEG").write_bytes(b"")
    more = DATA.read(tmp_path, "test")
    assert "classes.json: has no name for class 'dark_red'" in more.unnamed
    assert more.class_names == ("azure", "dark red", "lime", "crimson")
    (tmp_path / "classes.json").write_text('"blue"')
    with pytest.raises(DataError, match="classes.json: is neither an object nor a list"):
        DATA.read(tmp_path, "test")
    (tmp_path / "classes.json").unlink()
    assert DATA.read(tmp_path, "test").class_names[1] == "dark red"


def test_a_list_names_the_labels_by_number(tmp_path):
    (tmp_path / "classes.json").write_text('["circle", "square", "line"]')
    assert class_names(tmp_path / "classes.json", ["0", "2"]) == (("circle", "line"), "")
    named, unnamed = class_names(tmp_path / "classes.json", ["0", "3"])
    assert named == ("circle", "3") and "no name for class '3'" in unnamed


@pytest.mark.parametrize(
    "text, words",
    [
        ("a thing\n", "'a thing' must have exactly one"),
        ("{} or {}\n", "'{} or {}' must have exactly one"),
        ("", "is empty; write one"),
    ],
)
def test_templates_without_a_place_for_the_class_are_named(tmp_path, text, words):
    write_image_folder(tmp_path, {"test": 1})
    (tmp_path / "templates.txt").write_text(text)
    with pytest.raises(DataError, match=f"templates.txt: {words}"):
        DATA.read(tmp_path, "test")


def test_a_class_without_images_is_named(tmp_path):
    write_image_folder(tmp_path, {"test": 1})
    (tmp_path / "test" / "empty").mkdir()
    (tmp_path / "test" / "empty" / "notes.md").write_text("none")
    with pytest.raises(
        DataError, match="test: no images .* of class 'empty'; add some, or remove the folder$"
    ):
        DATA.read(tmp_path, "test")
    for number in range(12):
        (tmp_path / "test" / f"empty_{number:02d}").mkdir()
    with pytest.raises(DataError, match="'empty', 'empty_00', .*'empty_08' and 3 more; .* the folders$"):
        DATA.read(tmp_path, "test")


def test_files_of_other_formats_are_told_once(tmp_path, caplog):
    write_image_folder(tmp_path, {"test": 1})
    DATA.read(tmp_path, "test")
    assert caplog.messages == []
    for name in ("blue/.DS_Store", "blue/a.gif", "blue/b.gif", "green/c.AVIF", "red/deeper/d.bmp"):
        (tmp_path / "test" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "test" / name).write_bytes(b"")
    assert len(DATA.read(tmp_path, "test")) == 3
    (message,) = caplog.messages
    assert "test: 4 files of other formats than webp, jpg, jpeg, png left out" in message
    assert ", such as blue/a.gif, green/c.AVIF, red/deeper/d.bmp; convert" in message


def test_what_other_programs_leave_does_not_count(tmp_path):
    write_image_folder(tmp_path, {"test": 2, "train": 2})
    for name in (
        "train/.ipynb_checkpoints/0.png",
        "test/.empty",
        "test/blue/._0.png",
        "test/red/.trash/1.png",
    ):
        path = tmp_path / name
        path.mkdir(parents=True) if not path.suffix else path.parent.mkdir(exist_ok=True)
        if path.suffix == ".png":
            path.write_bytes(b"no picture")
    for split in ("train", "test"):
        found = ImageFolder().read(tmp_path, split)
        assert found.class_names == ("blue", "green", "red") and len(found) == 6


def test_damaged_class_names_are_named(tmp_path):
    write_image_folder(tmp_path, {"test": 1})
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(DataError, match="classes.json: not readable as JSON"):
        DATA.read(tmp_path, "test")
