"""A trial tells the most memory of all its steps, though records let a GPU count its peak anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest

from flava_ds.autotuning import trial
from flava_ds.watching import metrics


def peak_of_a_trial(folder: str) -> float:
    """On a device whose largest step comes before a record, and whose peaks are read with each of them."""
    os.chdir(folder)
    peaks = [3.0, 1.0]
    with mock.patch.object(metrics, "peak_memory", lambda _: int(2**30 * (peaks.pop(0) if peaks else 0.5))):
        words = ["--data.num-workers", "0", "--logging.every-steps", "1", "--training.total-steps", "6"]
        assert trial.run(["found.json", "flava_debug", *words]) == 0
    assert not peaks
    found: float = json.loads(Path("found.json").read_text())["peak_memory_gib"]
    return found


@pytest.mark.usefixtures("demo_data")
def test_the_peak_is_that_of_all_steps(run_ranks, tmp_path):
    assert run_ranks(peak_of_a_trial, 1, str(tmp_path)) == [3.0]
