"""RedCaps: posts of one subreddit and year per file."""

import json

from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.redcaps import read


def test_reads_files_of_a_folder_in_order(tmp_path):
    post = {
        "image_id": "bpzj7r",
        "author": "djasz1",
        "image_url": "https://i.redd.it/ho0wntksivy21.jpg",
        "raw_caption": "Found on a friend’s property in the Keys FL. She is now happily living in my house.",
        "caption": "found on a friend's property in the keys fl. she is now happily living in my house.",
        "subreddit": "airplants",
        "score": 72,
        "created_utc": 1558227620,
        "permalink": "/r/airplants/comments/bpzj7r/found_on_a_friends_property_in_the_keys_fl_she_is/",
        "crosspost_parents": None,
    }
    info = {"name": "RedCaps", "version": "1.0"}
    (tmp_path / "airplants_2019.json").write_text(
        json.dumps({"info": info, "annotations": [post | {"url": post["image_url"]}, post | {"caption": ""}]})
    )
    (tmp_path / "AirBnB_2019.json").write_text(
        json.dumps({"info": info, "annotations": [post | {"image_id": "a", "subreddit": "AirBnB"}]})
    )
    upper, first, second = read([tmp_path])
    assert (
        first.key == "redcaps-bpzj7r"
        and first.captions == (post["caption"],)
        and first.url == post["image_url"]
    )
    assert first.images == ("airplants/bpzj7r.jpg", "airplants/bpzj7r.jpg") and second == Dropped(NO_CAPTION)
    assert upper.images == ("AirBnB/a.jpg", "airbnb/a.jpg")
