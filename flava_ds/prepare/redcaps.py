"""RedCaps: annotations/SUBREDDIT_YEAR.json as published, images as redcaps-downloader stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flava_ds.prepare.annotations import NO_CAPTION, Annotated, Dropped, clean, load_json


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields one sample per post; its key is the post's id. Folders stand for the .json files in them.

    Source: redcaps.xyz/download, annotation format.
    """
    for path in (
        file for place in paths for file in (sorted(place.glob("*.json")) if place.is_dir() else [place])
    ):
        for post in load_json(path, "annotations")["annotations"]:
            caption, subreddit, number = (
                clean(post.get("caption")),
                str(post["subreddit"]),
                str(post["image_id"]),
            )
            if not caption:
                yield Dropped(NO_CAPTION)
                continue
            images = f"{subreddit}/{number}.jpg", f"{subreddit.lower()}/{number}.jpg"
            yield Annotated(
                key=f"redcaps-{number}",
                captions=(caption,),
                images=images,
                url=post.get("url"),
                record={"subreddit": subreddit},
            )
