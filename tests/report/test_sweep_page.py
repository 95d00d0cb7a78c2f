"""A sweep's table has what is looked for first, and its page says why runs failed."""

import re

from scaling.test_sweep import sweep_in

from flava_ds.report.sweep_page import status_rows, write_sweep_page

REASON = "data/00000.tar: cannot be read; get the file again"


def test_state_and_metric_come_first_and_reasons_last(tmp_path):
    sweep = sweep_in(tmp_path, 1, 2)
    failed, planned = sweep.runs
    sweep.log_of(failed).parent.mkdir()
    sweep.log_of(failed).write_text(f"error: {REASON}\n")
    sweep.end(failed, 2)
    assert status_rows(sweep) == [
        ["run", "state", "loss/mim", "x", "reason"],
        [failed, "failed", "", "1", REASON],
        [planned, "planned, held out", "", "2", ""],
    ]
    page = write_sweep_page(sweep).read_text()
    assert re.findall("<th scope=.col.>(.*?)</th>", page) == ["run", "state", "loss/mim", "x"]
    assert f"{failed}, failed: {REASON}" in page
