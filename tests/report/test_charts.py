"""Charts are well-formed, carry no colour and no address of their own, and draw what they are given."""

import re
from xml.etree import ElementTree

import pytest

from flava_ds.report.charts import MOST_POINTS, Line, Mark, Scale, draw, draw_histogram, short, smooth, thin


def test_a_chart_is_one_element_in_the_pages_colours():
    svg = draw('Loss of "x" & <y>', [Line([1, 2, 3], [3.0, 2.0, 1.0])], level=2.5, mark=Mark(3, 1.5))
    root = ElementTree.fromstring(re.sub(r"xlink:href", "href", svg))
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label") == 'Loss of "x" & <y>'
    assert "http" not in svg and "width=" not in svg[: svg.index(">")]
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", svg) and "var(--series-1)" in svg and "var(--ink-2)" in svg
    assert "DejaVu" not in svg and "var(--sans)" in svg


def test_two_charts_share_no_identifiers():
    first, second = (draw(name, [Line([1, 2], [1.0, 2.0])]) for name in ("one", "two"))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert {name for name in re.findall(r"url\(#([^)]+)\)", svg)} <= own


def test_the_same_chart_is_drawn_the_same_way():
    assert draw("a", [Line([1, 2], [1.0, 2.0])]) == draw("a", [Line([1, 2], [1.0, 2.0])])


def test_long_series_keep_their_mean_and_their_ends():
    steps, values = list(range(10_000)), [float(i % 7) for i in range(10_000)]
    places, means = thin(steps, values)
    assert len(places) <= MOST_POINTS and places[0] == 0 and places[-1] == 9_999
    assert sum(means) / len(means) == pytest.approx(3.0, abs=0.05)
    assert thin([1, 2], [5.0, 6.0]) == ([1, 2], [5.0, 6.0])


def test_smoothing_a_constant_changes_nothing_and_noise_shrinks():
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    noisy = [(-1.0) ** i for i in range(1000)]
    assert max(abs(value) for value in smooth(noisy)[500:]) < 0.1
    assert smooth([]) == []


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (7.5e-4, "7.5e-4"), (1e-3, "1e-3"), (0.25, "0.25"), (-12, "-12"), (1500, "1.5k"), (2e6, "2M")],
)
def test_ticks_are_short(value, text):
    assert short(value) == text


def test_scales_differ_where_they_should():
    lines = [Line([1, 2, 3], [1.0, 100.0, 10_000.0])]
    texts = {
        name: re.findall(r">([^<>\n]+)</text>", draw(name, lines, scale)) for name, scale in SCALES.items()
    }
    assert {"1", "100", "10k"} <= set(texts["log"]) and "0" not in texts["log"]
    assert "0" in texts["zero"] and "18k" in texts["top"] and "18k" not in texts["zero"]


SCALES = {
    "log": Scale(logarithmic=True),
    "zero": Scale(from_zero=True),
    "top": Scale(from_zero=True, top=24_000),
}


def test_histogram_counts_every_value_and_names_itself():
    svg = draw_histogram("Lengths", [1, 2, 2, 3, 50], bins=4, most=5, level=4)
    assert 'aria-label="Lengths"' in svg and svg.startswith("<svg") and "#0" not in svg
    bars = [part for part in svg.split("<path")[1:] if "clip-path" in part and "var(--series-1)" in part]
    assert len(bars) == 4
