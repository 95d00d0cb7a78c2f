"""YFCC100M: both published widths, URL-encoded fields, and the paper's filter case by case."""

import bz2

import pytest

from flava_ds.errors import DataError
from flava_ds.prepare.annotations import NO_CAPTION, NOT_ENGLISH, TOO_SHORT, Dropped
from flava_ds.prepare.yfcc100m import VIDEO, choose_caption, read, readable, reason_to_drop

pytest.importorskip("py3langid")
PHOTO = (
    "6185218911 4e2f7a26a1dfbf165a7e30bdabf7e72a 39019111@N00 guckxzs 2012-02-16+09:56:37.0 1331840483 "
    "Canon+PowerShot+ELPH+310+HS TITLE DESCRIPTION "
    "canon,canon+powershot+hs+310  -81.804885 24.550558 12 "
    "http://www.flickr.com/photos/39019111@N00/6985418911/ "
    "http://farm8.staticflickr.com/7205/6985418911_df7747990d.jpg Attribution-NonCommercial-NoDerivs+License "
    "http://creativecommons.org/licenses/by-nc-nd/2.0/ 7205 8 df7747990d 692d7e0a7f jpg 0"
)


def line(title: str, description: str, marker: str = "0", number: int | None = 0) -> str:
    """A row of 25 columns, or of 23 when `number` is None."""
    columns = [
        {"TITLE": title, "DESCRIPTION": description}.get(column, column) for column in PHOTO.split(" ")
    ]
    columns[-1] = marker
    return "\t".join([columns[0], *columns[2:]] if number is None else [str(number), *columns])


def read_lines(tmp_path, *lines: str) -> list:
    """Packs rows as they are published and reads them."""
    path = tmp_path / "yfcc100m_dataset.bz2"
    path.write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
    return list(read([path]))


@pytest.mark.parametrize("number", [None, 7])
def test_both_widths_give_the_same_photo(tmp_path, number):
    [photo] = read_lines(
        tmp_path,
        line(
            "IMG_0520",
            "My+vacation+in+the+mountains%2C+with+%3Ca+href%3D%22x%22%3Efriends%3C%2Fa%3E+%26amp%3B+family",
            number=number,
        ),
    )
    assert photo.key == "yfcc-6185218911" and photo.captions == (
        "My vacation in the mountains, with friends & family",
    )
    assert photo.images[0] == "6185218911.jpg" and photo.images[1:] == (
        () if number is None else ("4e2/f7a/4e2f7a26a1dfbf165a7e30bdabf7e72a.jpg",)
    )
    assert photo.url == "http://farm8.staticflickr.com/7205/6985418911_df7747990d.jpg"
    assert photo.record["license"] == "http://creativecommons.org/licenses/by-nc-nd/2.0/"


@pytest.mark.parametrize(
    ("title", "description", "expected"),
    [
        ("our+dog+in+the+snow", "sunset+over+the+lake+at+the+cabin", "sunset over the lake at the cabin"),
        ("our+dog+in+the+snow", "my+dog", "our dog in the snow"),
        ("our+dog+in+the+snow", "", "our dog in the snow"),
        ("our+dog+in+the+snow", "Unser+Hund+spielt+gerne+im+Schnee", "our dog in the snow"),
        ("IMG_0520", "my+dog", Dropped(TOO_SHORT)),
        ("", "", Dropped(NO_CAPTION)),
        ("IMG_0520", "Unser+Hund+spielt+gerne+im+Schnee", Dropped(NOT_ENGLISH)),
        ("coucher+de+soleil+sur+la+plage", "my+dog", Dropped(NOT_ENGLISH)),
    ],
)
def test_description_comes_before_title(tmp_path, title, description, expected):
    [found] = read_lines(tmp_path, line(title, description))
    assert (found if isinstance(expected, Dropped) else found.captions) == (
        expected if isinstance(expected, Dropped) else (expected,)
    )


def test_videos_are_left_out(tmp_path):
    assert read_lines(tmp_path, line("our+dog+in+the+snow", "", marker="1")) == [Dropped(VIDEO)]


def test_row_of_another_width_is_named(tmp_path):
    with pytest.raises(DataError, match=r"line 2: 3 columns instead of 23 or 25"):
        read_lines(tmp_path, line("a", "b"), "a\tb\tc")


def test_more_than_two_words_means_three():
    assert (
        choose_caption(["one two"], lambda text: True) == Dropped(TOO_SHORT)
        and choose_caption(["one two three"], lambda text: True) == "one two three"
    )


def test_readable_undoes_encoding_and_markup():
    assert readable("a+%22quoted%22%0Aline+%3Cb%3Ebold%3C%2Fb%3E+100%25") == 'a "quoted" line bold 100%'


def test_downloaded_samples_are_judged_by_their_caption():
    assert reason_to_drop("a red car parked outside the house", {}) is None
    assert (
        reason_to_drop("a car", {}) == TOO_SHORT
        and reason_to_drop("ein rotes Auto vor dem Haus", {}) == NOT_ENGLISH
    )
