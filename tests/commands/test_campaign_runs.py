"""What campaigns have in common: a run that is interrupted says how to go on."""

import argparse
import signal
from contextlib import suppress

import pytest

from flava_ds.campaigns import performing
from flava_ds.campaigns.ablation import TABLE
from flava_ds.cli import main
from flava_ds.commands import campaign_runs
from flava_ds.commands.campaign_runs import add_arguments, run_left
from flava_ds.ranks.stop_signals import STOP_SIGNALS


def options_of(out, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser, rows=("--rows", "rows"), work="work", out=out)
    return parser.parse_args(["--rows", "clip", "mim", "--work", "tiny", "--seeds", "1", *words])


@pytest.fixture
def ctrl_c():
    """Python's own answer to it, which a process started in the background has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_campaign_says_how_to_go_on(tmp_path, capsys, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    begun, before = [], [signal.getsignal(own) for own in STOP_SIGNALS]

    def interrupted(run):
        begun.append(run.row)
        try:
            signal.raise_signal(number)
        finally:
            begun.append("its training is waited for")

    monkeypatch.setattr(performing, "perform", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["ablation", "--rows", "clip", "mim", "--work", "tiny", "--seeds", "1", "--out", str(tmp_path)])
    assert len(begun) == 2 and before == [signal.getsignal(own) for own in STOP_SIGNALS]
    assert ended.value.code == 128 + number
    told = capsys.readouterr()
    assert told.out.endswith("stopped; the same command goes on from here\n") and not told.err


def test_two_campaigns_at_once_share_the_runs(tmp_path, capsys, monkeypatch):
    """The second, for one run, begins while the first is at `mim`; the first finds `clip` finished. Only the
    second ends before all are.
    """
    monkeypatch.chdir(tmp_path)
    performed, statuses = [], []

    def perform(run):
        performed.append(run.row)
        if len(performed) == 1:
            statuses.append(run_left(options_of(tmp_path, "--most", "1"), TABLE)[1])
        run.file.parent.mkdir(exist_ok=True)
        run.file.write_text("{}")

    monkeypatch.setattr(performing, "perform", perform)
    statuses.append(run_left(options_of(tmp_path), TABLE)[1])
    assert performed == ["mim", "clip"] and statuses == [1, 0]
    told = capsys.readouterr().out
    assert "mim, seed 0: left alone, another command is at it\n" in told
    assert f"clip, seed 0: left alone, it has finished meanwhile, {tmp_path}/tiny/clip-0.json\n" in told
    assert not list((tmp_path / "runs" / "ablation-tiny").iterdir())


@pytest.mark.parametrize(
    ("words", "seeds"), [([], [0, 1, 2]), (["--seeds", "1"], [0]), (["--seed", "2", "0", "2"], [0, 2])]
)
def test_seeds_can_be_run_one_by_one(tmp_path, monkeypatch, words, seeds):
    monkeypatch.chdir(tmp_path)
    performed = []

    def perform(run):
        performed.append(run.seed)
        run.file.parent.mkdir(exist_ok=True)
        run.file.write_text("{}")

    monkeypatch.setattr(performing, "perform", perform)
    parser = argparse.ArgumentParser()
    add_arguments(parser, rows=("--rows", "rows"), work="work", out=tmp_path)
    run_left(parser.parse_args(["--rows", "clip", "--work", "tiny", *words]), TABLE)
    assert performed == seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds 0: use at least 1"),
        (["--seed", "1", "-1"], "--seed -1: use at least 0"),
        (["--seed", "1", "--seeds", "2"], "argument --seeds: not allowed with argument --seed"),
    ],
)
def test_seeds_that_cannot_be_are_one_line(tmp_path, capsys, words, message):
    with suppress(SystemExit):
        assert main(["compare", "--out", str(tmp_path), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("command", ["ablation", "compare"])
@pytest.mark.parametrize("status", [0, 1])
def test_a_run_that_another_command_is_at_is_told_by_the_status(tmp_path, monkeypatch, command, status):
    monkeypatch.setattr(campaign_runs, "run_left", lambda options, table: (tmp_path, status))
    assert main([command, "--out", str(tmp_path)]) == status
