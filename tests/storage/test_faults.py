"""The reasons and the table of them in the documentation."""

from pathlib import Path

from data.whole_sources import OF_A_SAMPLE, OF_INCOMPLETE_SAMPLES

from flava_ds.storage import faults

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_documentation_lists_every_reason_and_where_it_is_counted():
    table = PAGE.read_text(encoding="utf-8").split("| reason | what was found |")[1].split("\n\n")[0]
    rows = {
        cells[0].strip(): cells[3] for line in table.splitlines()[2:] if (cells := line.strip("|").split("|"))
    }
    assert set(rows) == {*faults.OF_A_SHARD, *OF_INCOMPLETE_SAMPLES, *OF_A_SAMPLE}
    constants = {value for name, value in vars(faults).items() if name.isupper() and isinstance(value, str)}
    assert constants == set(rows), "every constant belongs to a group"
    for reason, counted in rows.items():
        assert ("start" in counted) == (reason in (*faults.OF_A_SHARD, *OF_INCOMPLETE_SAMPLES)), reason
        assert ("while reading" in counted) == (reason in OF_A_SAMPLE), reason


def test_only_what_loses_no_sample_is_harmless():
    assert faults.HARMLESS < set(faults.OF_A_SHARD)
