"""COCO's caption files: images joined with their captions by id, in the layouts of 2014 and 2017."""

import json

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.coco import read


def write(path, name: str, images: list[dict], captions: list[dict]):
    """Writes a caption file with the fields of the published ones."""
    info = {
        "description": "COCO 2014 Dataset",
        "version": "1.0",
        "year": 2014,
        "contributor": "COCO Consortium",
        "date_created": "2017/09/01",
    }
    path = path / name
    path.write_text(
        json.dumps(
            {
                "info": info,
                "images": images,
                "licenses": [{"id": 3, "name": "license"}],
                "annotations": captions,
            }
        )
    )
    return path


def image(number: int, name: str) -> dict:
    """An entry of `images`."""
    url = f"http://images.cocodataset.org/val2014/{name}"
    return {
        "license": 3,
        "file_name": name,
        "coco_url": url,
        "height": 360,
        "width": 640,
        "date_captured": "2013-11-14",
        "id": number,
    }


def test_captions_are_grouped_by_image_in_the_order_of_images(tmp_path):
    images = [
        image(391895, "COCO_val2014_000000391895.jpg"),
        image(60623, "000000060623.jpg"),
        image(7, "COCO_val2014_000000000007.jpg"),
    ]
    captions = [
        {
            "image_id": 60623,
            "id": 1,
            "caption": "A young girl inhales with the intent of blowing out a candle.",
        },
        {
            "image_id": 391895,
            "id": 770337,
            "caption": "A man with a red helmet on a small moped on a dirt road. ",
        },
        {"image_id": 391895, "id": 771687, "caption": "Man riding a motor bike\non a dirt road."},
    ]
    first, second, third = read([write(tmp_path, "captions_val2014.json", images, captions)])
    assert first.key == "000000391895"
    assert first.captions == (
        "A man with a red helmet on a small moped on a dirt road.",
        "Man riding a motor bike on a dirt road.",
    )
    assert first.images == ("COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg")
    assert first.record == {"image_id": 391895, "width": 640, "height": 360} and first.url.endswith(
        first.images[0]
    )
    assert second.images == ("000000060623.jpg", "train2017/000000060623.jpg", "val2017/000000060623.jpg")
    assert third == Dropped(NO_CAPTION, "COCO_val2014_000000000007.jpg")


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({"images": []}, "annotations"),
        ({"images": [], "annotations": [{"image_id": 1, "category_id": 3}]}, "caption"),
    ],
)
def test_instances_file_is_refused(tmp_path, content, missing):
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=f"instances.json': no field '{missing}'; is this the file that docs/data.md names?"
    ):
        list(read([tmp_path / "instances.json"]))


def of_split(name: str, split: str, said: list[str], **more) -> dict:
    """An entry of Karpathy's file."""
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in said], **more}


def test_karpathys_file_gives_the_images_that_are_trained_on(tmp_path):
    images = [
        of_split("COCO_val2014_000000391895.jpg", "test", ["one"], cocoid=391895, filepath="val2014"),
        of_split("COCO_val2014_000000000007.jpg", "restval", [" one\n", "two"], cocoid=7, filepath="val2014"),
        of_split("COCO_train2014_000000000009.jpg", "train", [""], cocoid=9, filepath="train2014"),
        of_split("1000092795.jpg", "train", ["three"], imgid=0),  # of Flickr30k
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    test, seven, bare, flickr = read([tmp_path / "dataset.json"])
    assert test == Dropped("split test", "COCO_val2014_000000391895.jpg")
    assert (seven.key, seven.captions) == ("000000000007", ("one", "two"))
    assert seven.images[1] == "val2014/COCO_val2014_000000000007.jpg" and seven.record == {"image_id": 7}
    assert bare == Dropped(NO_CAPTION, "COCO_train2014_000000000009.jpg")
    assert (flickr.key, flickr.images[0], flickr.record) == ("1000092795", "1000092795.jpg", {})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [{"sentences": []}]}))
    with pytest.raises(DataError, match=r"dataset.json': no field 'filename'"):
        list(read([tmp_path / "dataset.json"]))
