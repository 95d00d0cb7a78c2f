"""What campaigns have in common: a run that is interrupted says how to go on."""

import argparse

import pytest

from flava_ds.campaigns import performing
from flava_ds.campaigns.ablation import TABLE
from flava_ds.commands.campaign_runs import add_arguments, run_left


def test_an_interrupted_campaign_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    begun = []

    def interrupted(run):
        begun.append(run.row)
        raise KeyboardInterrupt

    monkeypatch.setattr(performing, "perform", interrupted)
    parser = argparse.ArgumentParser()
    add_arguments(parser, rows=("--rows", "rows"), work="work", out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_left(parser.parse_args(["--rows", "clip", "mim", "--work", "tiny"]), TABLE)
    assert len(begun) == 1
    assert capsys.readouterr().out.endswith("stopped; the same command goes on from here\n")
