"""The page of a check: whole, self-contained, with charts, samples and copies, and nothing from the data left
unescaped.
"""

import numpy as np
import pytest
from data.shard_files import encode, write_tar
from report.test_page import Page

from flava_ds.prepare import check
from flava_ds.prepare.check import Need, check_shards
from flava_ds.prepare.check_page import write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of twelve pairs with a hostile caption, two copies, a large picture and a file
    that is none."""
    folder = tmp_path_factory.mktemp("shards") / "<b>shards"
    folder.mkdir()
    random = np.random.default_rng(0)
    pictures = [
        encode(
            np.kron(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)), "png"
        )
        for _ in range(10)
    ]
    pictures += [
        pictures[0],
        encode(random.integers(0, 256, (300, 300, 3), dtype=np.uint8), "png"),
        b"<html>",
    ]
    members = []
    for number, data in enumerate(pictures):
        members += [
            (f"{number:03d}.png", data),
            (f"{number:03d}.txt", f"<script>alert({number})</script> a dog & a cat".encode()),
        ]
    write_tar(folder / "00000.tar", members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "_TIMED_S", 1e-9)
        found = check_shards(str(folder), Need(gpus=2, images_per_second_per_gpu=100))
    path = write_page(found, folder / "a new folder" / "check.html")
    return Page(path.read_text(encoding="utf-8")), path


def test_page_is_whole_and_needs_nothing_else(page):
    parsed, path = page
    assert not parsed.errors and not parsed.open and path.stat().st_size < 500_000
    assert not any(
        "src" in attributes and not attributes["src"].startswith("data:") for _, attributes in parsed.elements
    )
    assert (
        not [tag for tag, _ in parsed.elements if tag == "script"]
        and "<script>alert(3)</script> a dog & a cat" in parsed.text
    )
    assert len({attributes["id"] for _, attributes in parsed.elements if "id" in attributes}) == sum(
        "id" in attributes for _, attributes in parsed.elements
    )


def test_page_shows_samples_charts_and_verdicts(page):
    parsed, _ = page
    images = parsed.all("img")
    assert (
        len(images) == 12
        and all(image["alt"] for image in images)
        and {image["width"] for image in images} == {"32", "224"}
    )
    assert [svg["aria-label"].split(" in ")[0] for svg in parsed.all("svg")] == [
        "Caption length",
        "Aspect ratio",
        "Shorter side",
    ]
    assert "Equal bytes: 1 group" in parsed.text and "000  010" in parsed.text
    assert (
        parsed.text.count("Good") + parsed.text.count("Look") >= 7
        and "12 of them" not in parsed.text
        and "13 of them, evenly spaced, were read" in parsed.text
    )
