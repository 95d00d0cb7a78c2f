"""Wikipedia Image Text (wit_v1.train.all-*.tsv.gz): English pages only, the best of three captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from flava_ds.prepare.annotations import (
    NOT_ENGLISH,
    Annotated,
    Dropped,
    captioned,
    clean,
    name_in,
    position_paths,
    table,
)

COLUMNS = (
    "language",
    "page_url",
    "image_url",
    "page_title",
    "section_title",
    "hierarchical_section_title",
    "caption_reference_description",
    "caption_attribution_description",
    "caption_alt_text_description",
    "mime_type",
    "original_height",
    "original_width",
    "is_main_image",
    "attribution_passes_lang_id",
    "page_changed_recently",
    "context_page_description",
    "context_section_description",
)


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields the rows of English pages. The key hashes image and page, as an image may be on several pages.

    Source: google-research-datasets/wit, DATA.md.
    """
    number = -1
    for path in paths:
        for row in table(path, COLUMNS, quoted=True):
            number += 1
            if row["language"] != "en":
                yield Dropped(NOT_ENGLISH)
            else:
                key = hashlib.sha256(f"{row['image_url']}\n{row['page_url']}".encode()).hexdigest()[:24]
                name = unquote(name_in(row["image_url"]))
                record = {"page_url": row["page_url"], "page_title": row["page_title"]}
                yield captioned(
                    [caption_of(row)],
                    key=f"wit-{key}",
                    images=(name, *position_paths(number)),
                    url=row["image_url"],
                    record=record,
                )


def caption_of(row: Mapping[str, str]) -> str:
    """Returns the reference caption, or the attribution if in the page's language, or the alternative text.

    The paper does not say which one it used. The attribution of a file on Commons starts with the name of its
    language.
    """
    attribution = ""
    if row["attribution_passes_lang_id"].lower() == "true":
        attribution = clean(row["caption_attribution_description"])
    choices = (
        clean(row["caption_reference_description"]),
        attribution.removeprefix("English:").strip(),
        clean(row["caption_alt_text_description"]),
    )
    return next((choice for choice in choices if choice), "")


def reason_to_drop(caption: str, record: Mapping[str, Any]) -> str | None:
    """Judges a downloaded sample by the language in its .json, if the download kept it."""
    return NOT_ENGLISH if record.get("language", "en") != "en" else None
