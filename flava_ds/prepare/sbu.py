"""SBU Captions: SBU_captioned_photo_dataset_urls.txt with ..._captions.txt, or sbu-captions-all.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import (
    Annotated,
    Dropped,
    captioned,
    clean,
    load_json,
    name_in,
    open_text,
    position_paths,
)


def read(paths: Sequence[Path]) -> Iterator[Annotated | Dropped]:
    """Yields one sample per line. Images are named by the end of their URL, or as img2dataset stores them.

    Raises: DataError when the two lists differ in length, or only one is given.
    Source: readme of the SBU Captioned Photo Dataset (Ordonez et al. 2011).
    """
    for number, (url, text) in enumerate(_pairs(paths)):
        yield captioned(
            [clean(text)],
            key=f"sbu-{number:07d}",
            images=(name_in(url), *position_paths(number)),
            url=url.strip(),
        )


def _pairs(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yields pairs of URL and caption."""
    if len(paths) == 1 and ".json" in paths[0].suffixes:
        content = load_json(paths[0], "image_urls", "captions")
        yield from _together(content["image_urls"], content["captions"], str(paths[0]))
        return
    urls, captions = (
        next((path for path in paths if path.name.split(".")[0].endswith(end)), None)
        for end in ("urls", "captions")
    )
    if len(paths) != 2 or urls is None or captions is None:
        raise DataError(
            "sbu: give sbu-captions-all.json, or SBU_captioned_photo_dataset_urls.txt and "
            "SBU_captioned_photo_dataset_captions.txt"
        )
    with open_text(urls) as url_lines, open_text(captions) as caption_lines:
        yield from _together(url_lines, caption_lines, f"{urls.name} and {captions.name}")


def _together(urls: Iterable[str], captions: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    """Zips two lists of equal length."""
    try:
        yield from zip(urls, captions, strict=True)
    except ValueError as error:
        raise DataError(
            f"sbu: {where} differ in length, so captions would go to the wrong images; download them again"
        ) from error
