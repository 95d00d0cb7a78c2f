"""Regions that were found before: published tables, decoded by hand, and shards, by the names of images."""

import base64

import numpy as np
import pytest
from region_files import WIDTH, regions, tags, write_regions, write_texts

from flava_ds.data.stored_regions import COLUMNS, StoredRegions
from flava_ds.errors import DataError

BOXES = np.array([[10, 5, 60, 40], [0, 0, 100.5, 20]], dtype="<f4")
FEATURES = np.arange(2 * WIDTH, dtype="<f4").reshape(2, WIDTH)


def row(columns: int, name: str, boxes=BOXES, features=FEATURES, count: int | None = None) -> str:
    """A row of a table for an image of 100 x 50 pixels."""

    def packed(values) -> str:
        return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()

    sizes = {"image_w": 100, "img_w": 100, "image_h": 50, "img_h": 50, "num_boxes": count or len(boxes)}
    arrays = {"boxes": packed(boxes), "features": packed(features)}
    fields = [name, *({**sizes, **arrays}.get(column, "AAAA") for column in COLUMNS[columns][1:])]
    return "\t".join(map(str, fields)) + "\n"


def stored(folder, *rows: str, whole: bool = False) -> StoredRegions:
    (folder / "val2014_obj36.tsv").write_text("".join(rows))
    return StoredRegions(folder, feature_size=WIDTH, whole=whole)


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_table_is_read_as_published(tmp_path, columns):
    """Pixels become shares, and what sticks out is cut. COCO's images may have their number alone."""
    found = stored(tmp_path, row(columns, "9", FEATURES[:1, :4]), row(columns, "581929"))
    own = found.read("COCO_val2014_000000581929")
    expected = [[0.1, 0.1, 0.6, 0.8], [0, 0, 1, 0.4]]
    np.testing.assert_allclose(own.boxes, expected, rtol=1e-6)
    assert np.array_equal(own.features, FEATURES) and own.tags == ""
    assert found.find("COCO_val2014_000000000008") is None
    whole = StoredRegions(tmp_path, feature_size=WIDTH, whole=True)
    assert whole.fingerprint != found.fingerprint
    with_image = whole.read("COCO_val2014_000000581929")
    assert with_image.boxes[0].tolist() == [0, 0, 1, 1] and np.array_equal(with_image.boxes[1:], own.boxes)
    assert np.array_equal(with_image.features, np.concatenate([FEATURES.mean(0, keepdims=True), FEATURES]))


def test_shards_are_read_as_training_reads_them(tmp_path):
    found = StoredRegions(write_regions(tmp_path / "own", range(3)), feature_size=WIDTH, whole=True)
    assert sorted(found.places) == ["000", "001", "002"]
    own = found.read("002")
    assert np.array_equal(own.features, regions(2)["features"]) and own.tags == tags(2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a\tb\tc\n"], r"val2014_obj36.tsv: line 1 has 3 columns; expected 6 or 10"),
        (
            [row(6, "7", count=3)],
            "the regions of image '7' cannot be used: 8 numbers of boxes, but 3 regions",
        ),
        ([row(6, "7", features=FEATURES[:, 1:])], "numbers of features, but 2 regions of"),
        ([row(6, "7", features=FEATURES * np.nan)], "image '7' .* infinities or no numbers"),
        ([row(6, "7").replace("\t100\t", "\twide\t")], "image '7' cannot be used: invalid literal"),
        ([row(6, "7").replace("\t50\t", "\t0\t")], "image '7' cannot be used: its image has 100 x 0 pixels"),
        ([row(6, "7", BOXES[:, [2, 1, 0, 3]])], "image '7' cannot be used: a box ends before it begins"),
        ([row(6, "8")], "has no regions of image '7'; run the detector on it"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        stored(tmp_path, *rows).read("7")


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither shards of regions .* nor published tables"):
        StoredRegions(tmp_path, feature_size=WIDTH, whole=False)
    texts = write_texts(tmp_path / "texts", range(1))
    with pytest.raises(DataError, match="have no KEY.regions.safetensors"):
        StoredRegions(texts, feature_size=WIDTH, whole=False).find("7")
