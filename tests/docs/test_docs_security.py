"""Every promise of docs/security.md names the tests that hold it, and these exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|^## |\Z)", PAGE.split("## Promises")[1], re.M | re.S)


def test_there_are_promises_and_a_table_of_who_may_write_what():
    assert len(PROMISES) >= 10 and "## Who may write what" in PAGE


@pytest.mark.parametrize(("promise", "words"), PROMISES, ids=[promise for promise, _ in PROMISES])
def test_every_promise_names_tests_that_exist(promise, words):
    named = re.findall(r"`(tests/[\w/]+\.py)`", words)
    assert named, "a promise without a test"
    for name in named:
        path = ROOT / name
        assert path.is_file() and re.search(r"^def test_", path.read_text(encoding="utf-8"), re.M), name


def test_the_harness_and_its_corpus_are_where_the_page_says():
    for name in re.findall(r"`(tests/fuzz/[\w./]*)`", PAGE):
        assert (ROOT / name).exists(), name
