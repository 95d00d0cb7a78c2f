"""The tables of families' differences hold every family, and nothing beyond its limit."""

import importlib.util
import json
from pathlib import Path

from flava_ds.config.family import BUILT_IN

ROOT = Path(__file__).parents[2]


def rows_of(table: str) -> list[dict]:
    found = json.loads((ROOT / "benchmarks/results/family_equality.json").read_text())
    return [row for row in found["rows"] if row["table"] == table]


def test_every_family_has_its_rows_and_keeps_its_limits():
    parity, splits = rows_of("parity"), rows_of("splits")
    assert {row["family"] for row in parity} == set(BUILT_IN)
    assert {row["family"] for row in splits} == set(BUILT_IN) - {"flava"}  # which has a table of its own
    for row in parity:
        assert row["found"] and all(value <= row["limits"][name] for name, value in row["found"].items()), row
    for row in splits:
        assert row["found"] <= row["limit"] and row["losses"] > 2, row


def test_rows_that_differ_in_their_numbers_alone_are_joined_by_the_largest():
    spec = importlib.util.spec_from_file_location("family_equality", ROOT / "benchmarks/family_equality.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    one = {"table": "parity", "family": "a", "found": {"outputs": 1.0, "gradients": 4.0}}
    other = {"table": "parity", "family": "a", "found": {"outputs": 3.0, "gradients": 2.0}}
    split = {"table": "splits", "family": "a", "found": 0.5}
    rows = script.merged([one, split, other, {**split, "found": 0.25}, {**one, "family": "b"}])
    assert [row["found"] for row in rows] == [
        {"outputs": 3.0, "gradients": 4.0},
        0.5,
        {"outputs": 1.0, "gradients": 4.0},
    ]
