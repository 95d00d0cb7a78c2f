"""YFCC100M with the paper's filter: the description or else the title, if English and over two words long."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import (
    NO_CAPTION,
    NOT_ENGLISH,
    TOO_SHORT,
    Annotated,
    Dropped,
    clean,
    open_text,
)

VIDEO = "video"
MOST_WORDS_DROPPED = 2
COLUMNS = (
    "photo_id",
    "user_nsid",
    "user_nickname",
    "date_taken",
    "date_uploaded",
    "capture_device",
    "title",
    "description",
    "user_tags",
    "machine_tags",
    "longitude",
    "latitude",
    "accuracy",
    "page_url",
    "download_url",
    "license_name",
    "license_url",
    "server_id",
    "farm_id",
    "secret",
    "secret_original",
    "extension",
    "marker",
)
"""Columns of yfcc100m_dataset. The AWS release has two more: line number (first), hash (after photo_id)."""
_TAG = re.compile(r"<[^>]*>")


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields the photos that pass the filter; the key is the photo's id.

    Raises: DataError for a row that has neither 23 nor 25 columns, or when the language identifier is not
    installed.
    Source: the readme of YFCC100M; paper section 3.2 for the filter.
    """
    from flava_ds.prepare.english import english_filter

    is_english = english_filter()
    for path in paths:
        with open_text(path) as stream:
            for number, line in enumerate(stream, 1):
                values = line.rstrip("\r\n").split("\t")
                if len(values) not in (len(COLUMNS), len(COLUMNS) + 2):
                    raise DataError(
                        f"annotations '{path}', line {number}: {len(values)} columns instead of "
                        f"{len(COLUMNS)} or {len(COLUMNS) + 2}"
                    )
                file_hash = values[2] if len(values) > len(COLUMNS) else None
                columns = values if file_hash is None else [values[1], *values[3:]]
                row = dict(zip(COLUMNS, columns, strict=True))
                yield _photo(row, file_hash, is_english)


def _photo(
    row: Mapping[str, str], file_hash: str | None, is_english: Callable[[str], bool]
) -> Annotated | Dropped:
    """Applies the filter to one row.

    Images are named by the photo's id or, as in the multimedia-commons bucket, by the hash.
    """
    if row["marker"] != "0":
        return Dropped(VIDEO)
    chosen = choose_caption([readable(row["description"]), readable(row["title"])], is_english)
    if isinstance(chosen, Dropped):
        return chosen
    images: tuple[str, ...] = (f"{row['photo_id']}.jpg",)
    if file_hash:
        images += (f"{file_hash[:3]}/{file_hash[3:6]}/{file_hash}.jpg",)
    record = {"license": row["license_url"], "page_url": row["page_url"]}
    return Annotated(
        key=f"yfcc-{row['photo_id']}",
        captions=(chosen,),
        images=images,
        url=row["download_url"],
        record=record,
    )


def readable(text: str) -> str:
    """Undoes a field's URL encoding, and removes the HTML that Flickr allows in descriptions."""
    return clean(html.unescape(_TAG.sub(" ", unquote_plus(text))))


def choose_caption(texts: Sequence[str], is_english: Callable[[str], bool]) -> str | Dropped:
    """Returns the first text that passes; otherwise why the one that came closest failed."""
    reason = NO_CAPTION
    for text in texts:
        if len(text.split()) <= MOST_WORDS_DROPPED:
            reason = TOO_SHORT if text and reason == NO_CAPTION else reason
        elif is_english(text):
            return text
        else:
            reason = NOT_ENGLISH
    return Dropped(reason)


def reason_to_drop(caption: str, record: Mapping[str, Any]) -> str | None:
    """Judges a downloaded sample by its caption."""
    from flava_ds.prepare.english import english_filter

    chosen = choose_caption([caption], english_filter())
    return chosen.reason if isinstance(chosen, Dropped) else None
