"""RedCaps: annotations/SUBREDDIT_YEAR.json as published, images as redcaps-downloader stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.prepare.annotations import Annotated, Dropped, captioned, clean, load_json


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields one sample per post; its key is the post's id. A folder stands for its .json files.

    Source: redcaps.xyz/download, annotation format.
    """
    files = [
        file for place in paths for file in (sorted(place.glob("*.json")) if place.is_dir() else [place])
    ]
    for path in files:
        for post in load_json(path, "annotations")["annotations"]:
            subreddit, number = str(post["subreddit"]), str(post["image_id"])
            images = f"{subreddit}/{number}.jpg", f"{subreddit.lower()}/{number}.jpg"
            yield captioned(
                [clean(post.get("caption"))],
                key=f"redcaps-{number}",
                images=images,
                url=post.get("url"),
                record={"subreddit": subreddit},
            )
