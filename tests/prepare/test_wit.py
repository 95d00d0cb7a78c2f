"""Wikipedia Image Text: English rows, one caption of three, quoted fields."""

import csv
import gzip
import io

import pytest

from flava_ds.prepare.annotations import NO_CAPTION, NOT_ENGLISH, Dropped
from flava_ds.prepare.wit import COLUMNS, caption_of, read, reason_to_drop

ROW = {
    "language": "en",
    "page_url": "https://en.wikipedia.org/wiki/Oxydactylus",
    "image_url": "https://upload.wikimedia.org/wikipedia/commons/5/5f/Oxydactylus_longipes_%28fm%29.jpg",
    "page_title": "Oxydactylus",
    "hierarchical_section_title": "Oxydactylus",
    "caption_attribution_description": "English: A skeleton of Oxydactylus longipes in the Field Museum.",
    "mime_type": "image/jpeg",
    "is_main_image": "true",
    "attribution_passes_lang_id": "true",
    "context_page_description": 'Oxydactylus is an extinct genus.\nIt lived "long ago".\tReally.',
}


def test_reads_the_published_file(tmp_path):
    stream = io.StringIO()
    rows = csv.DictWriter(stream, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
    rows.writeheader()
    rows.writerows(
        [
            ROW,
            ROW | {"language": "de"},
            ROW | {"caption_attribution_description": ""},
            ROW | {"page_url": "https://en.wikipedia.org/wiki/Camel"},
        ]
    )
    path = tmp_path / "wit_v1.train.all-1percent_sample.tsv.gz"
    path.write_bytes(gzip.compress(stream.getvalue().encode()))
    first, german, empty, other_page = read([path])
    assert (
        first.captions == ("A skeleton of Oxydactylus longipes in the Field Museum.",)
        and first.url == ROW["image_url"]
    )
    assert first.images == ("Oxydactylus_longipes_(fm).jpg", "00000/000000000.jpg")
    assert first.record == {"page_url": ROW["page_url"], "page_title": "Oxydactylus"}
    assert german == Dropped(NOT_ENGLISH) and empty == Dropped(NO_CAPTION) and other_page.key != first.key


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"caption_reference_description": "A skeleton in the museum"}, "A skeleton in the museum"),
        ({"attribution_passes_lang_id": "false"}, "a skeleton"),
        ({}, "A skeleton of Oxydactylus longipes in the Field Museum."),
    ],
)
def test_reference_comes_before_attribution_before_alternative_text(changes, expected):
    assert (
        caption_of(
            dict.fromkeys(COLUMNS, "") | ROW | {"caption_alt_text_description": "a skeleton"} | changes
        )
        == expected
    )


def test_downloaded_samples_are_judged_by_their_language_where_it_was_kept():
    assert (
        reason_to_drop("x", {"language": "fr"}) == NOT_ENGLISH
        and reason_to_drop("x", {"language": "en"}) is None
        and reason_to_drop("x", {}) is None
    )
