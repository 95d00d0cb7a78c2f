"""SBU Captions in both published forms."""

import json

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.sbu import read

URLS = [
    "http://static.flickr.com/2723/4385058960_b0f291553e.jpg",
    "http://static.flickr.com/3006/2781159220_6a0d52c1.jpg",
    "http://static.flickr.com/1/2_3.jpg",
]
CAPTIONS = ["A wooden chair in the living room", " ", "white horse near avebury"]


def published(tmp_path, form: str, captions=CAPTIONS):
    """Writes the data set as one JSON or as two lists."""
    if form == "json":
        path = tmp_path / "sbu-captions-all.json"
        path.write_text(
            json.dumps({"image_urls": URLS, "user_ids": ["47889917@N08"] * 3, "captions": captions})
        )
        return [path]
    paths = [tmp_path / f"SBU_captioned_photo_dataset_{kind}.txt" for kind in ("captions", "urls")]
    for path, lines in zip(paths, (captions, URLS), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return paths


@pytest.mark.parametrize("form", ["json", "lists"])
def test_both_forms_give_the_same_samples(tmp_path, form):
    first, second, third = read(published(tmp_path, form))
    assert (first.key, first.captions, first.url) == ("sbu-0000000", (CAPTIONS[0],), URLS[0])
    assert second == Dropped(NO_CAPTION)
    assert third.key == "sbu-0000002" and third.images == ("2_3.jpg", "00000/000000002.jpg")


@pytest.mark.parametrize("form", ["json", "lists"])
def test_lists_of_different_length_are_refused(tmp_path, form):
    with pytest.raises(DataError, match="differ in length"):
        list(read(published(tmp_path, form, CAPTIONS[:2])))


def test_one_list_alone_is_refused(tmp_path):
    with pytest.raises(DataError, match="sbu: give sbu-captions-all.json, or"):
        list(read(published(tmp_path, "lists")[:1]))
