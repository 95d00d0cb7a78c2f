"""Conceptual Captions: the two files have their columns in opposite order."""

from flava_ds.prepare.annotations import NO_CAPTION, Dropped
from flava_ds.prepare.conceptual_captions import read_cc3m, read_cc12m

CAPTION, URL = (
    "a very typical bus station",
    "http://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/AAAAAAAAM6o/_11MuAAKalQ/IMG_3422.JPG?imgmax=800",
)


def test_cc3m_has_the_caption_first(tmp_path):
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text(
        f"{CAPTION}\t{URL}\n \thttp://x/2.jpg\nsierra looked stunning in this top\thttp://x/3.jpg\n"
    )
    first, second, third = read_cc3m([path])
    assert (first.key, first.captions, first.url, first.images) == (
        "cc3m-00000000",
        (CAPTION,),
        URL,
        ("00000/000000000.jpg",),
    )
    assert second == Dropped(NO_CAPTION) and third.key == "cc3m-00000002"


def test_cc12m_has_the_url_first_and_may_have_a_header(tmp_path):
    path = tmp_path / "cc12m.tsv"
    rows = (
        f"{URL}\tMetal Design Within Reach Ivory Slipper Chairs - a Pair For Sale - Image 7 of "
        '10\nhttp://x/2.jpg\t<PERSON> was the first "US" president\n'
    )
    path.write_text(rows)
    plain = list(read_cc12m([path]))
    assert plain[1].captions == ('<PERSON> was the first "US" president',) and plain[0].url == URL
    for mark in ("", "\ufeff"):
        path.write_text(f"{mark}url\tcaption\n{rows}")
        assert list(read_cc12m([path])) == plain
