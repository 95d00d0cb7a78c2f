"""The tables of docs/kernels.md come from kernels/aot.csv, and that agrees with the budget."""

from pathlib import Path

from flava_kernels import aot_budget
from flava_kernels.aot_table import read_csv
from test_fill import fill

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels" / "aot.csv"


def test_the_committed_table_agrees_with_the_budget():
    budget = aot_budget.load(aot_budget.PATH)
    measured = {}
    for line in read_csv(TABLE):
        limits = {
            name: int(line[name]) for name in (*aot_budget.AT_MOST, *aot_budget.AT_LEAST, *aot_budget.EXACTLY)
        }
        measured.setdefault(line["triton"], {}).setdefault(line["arch"], {})[line["name"]] = limits
    assert measured == budget, "run make kernels AOT_FLAGS=--update"


def test_rows_come_from_the_table(tmp_path):
    page, table = tmp_path / "docs" / "kernels.md", tmp_path / "kernels" / "aot.csv"
    for file in (page, table):
        file.parent.mkdir()
    page.write_text(
        "words\n<!-- generated: aot_rows -->\nold\n<!-- end of generated -->\nmore words\n<!-- "
        "generated: aot_summary -->\n<!-- end of generated -->\n"
    )
    header, *lines = TABLE.read_text().splitlines()
    newest = next(line for line in reversed(lines) if ",sm_90," in line and ".bf16" in line)
    table.write_text(f"{header}\n{newest}\n")
    assert fill(tmp_path).returncode == 0
    text = page.read_text()
    name = newest.split(",")[2]
    assert (
        f"| {name} |" in text and text.startswith("words\n") and "more words" in text and "old\n" not in text
    )
