"""The line for people, which the trainer prints and the demo repeats."""

from flava_ds.watching.log_line import console_line, duration, flop_rate, show

RECORD = {
    "step": 9,
    "loss/mlm": 2.5,
    "loss/mim": 3.25,
    "loss/itm": None,
    "samples_per_second": 12.34,
    "data_wait": 0.07,
    "flops_per_second": 2.5e9,
    "mfu": 0.31,
    "peak_memory_gib": 1.5,
    "eta_s": 3723.0,
}


def test_shows_what_a_person_watches():
    expected = (
        "step 10/100 | mlm 2.500 mim 3.250 itm not finite | 12.3 samples/s | data wait 7% | "
        "2.5 GFLOP/s = 31% of GEMM rate | 1.50 GiB | ETA 1:02:03"
    )
    assert console_line(RECORD, 100) == expected
    assert console_line({**RECORD, "source_share/pair": 1.0, "source_share/text": 0.0}, 100) == expected


def test_names_sources_slow_ranks_and_skipped_samples_where_there_are_any():
    shares = {"source_share/pair": 0.7, "source_share/en/text": 0.3}
    slow = {
        "rank_seconds/median": 0.5,
        "rank_seconds/slowest": 0.75,
        "slowest_rank": 3,
        "slowest_host": "n07",
        "slowest_in": "data",
    }
    skipped = {
        "skipped_samples/pair/undecodable": 2,
        "skipped_samples/en/text/empty caption": 1,
        "skipped_samples/pair/truncated": 4,
    }
    line = console_line(RECORD | shares | slow | skipped, 100)
    assert "| pair 70% en/text 30% |" in line
    assert line.endswith(
        "| slow: rank 3 on n07, 1.5 x the median, in data | skipped: pair undecodable 2, truncated 4; "
        "en/text empty caption 1"
    )
    assert "slow" not in console_line(RECORD | slow | {"rank_seconds/slowest": 0.59}, 100)


def test_numbers_stay_short():
    assert flop_rate(4.12e14) == "412 TFLOP/s" and flop_rate(41.24e9) == "41.2 GFLOP/s"
    assert duration(59.9) == "0:00:59"


def test_a_terminal_sees_one_line_that_changes(capsys, monkeypatch):
    show("one", last=False)
    assert capsys.readouterr().out == "one\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show("two", last=False)
    show("three", last=True)
    assert capsys.readouterr().out == "\r\x1b[Ktwo\r\x1b[Kthree\n"
