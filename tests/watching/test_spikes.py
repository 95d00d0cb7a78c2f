"""When a run ends for updates that were skipped, and what is named as the reason."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from flava_ds.config import TrainingConfig
from flava_ds.ranks.distributed import log
from flava_ds.training.watcher import DivergedError
from flava_ds.watching import spikes

GOOD = {"loss/mlm": 2.0, "loss/itm": 0.5}


@pytest.fixture
def judged(monkeypatch, caplog):
    """Returns a function that judges a record after so many skipped updates of a run of 6, on one rank, and
    the next, without any; it returns the warnings.
    """
    monkeypatch.setattr(spikes, "gather_objects", lambda world, value: [value])
    monkeypatch.setattr(log, "propagate", True)

    def judge(skipped: int, record: dict, weight: float = 1.0, limit: int = 4, steps: int = 6) -> str:
        fragments = [
            SimpleNamespace(name=name, tensors={"weight": torch.tensor([0.0, number])})
            for name, number in (("model.first", 1.0), ("model.second", weight))
        ]
        engine = SimpleNamespace(
            longest_skip=torch.tensor(skipped),
            skipped_in_a_row=torch.tensor(skipped),
            optimizer=object(),
            held=lambda: iter(fragments),
            world=SimpleNamespace(size=1, is_main=True),
        )
        watch = spikes.DivergenceWatch(engine, TrainingConfig(total_steps=steps, stop_on_nonfinite=limit))
        with caplog.at_level(logging.WARNING):
            watch.on_record(5, record)
            watch.on_record(6, GOOD)
        return caplog.text

    return judge


def test_a_few_skipped_updates_are_a_warning_that_names_the_losses(judged):
    assert judged(0, GOOD) == ""
    assert "step 5: up to 2 updates in a row were skipped because a gradient was not finite" in judged(
        2, GOOD
    )
    bad = GOOD | {"loss/itm": math.nan, "grad_norm": math.nan}
    assert "because the loss of itm was not finite" in judged(2, bad)
    said = judged(2, bad | {"loss/mlm": math.inf})
    assert "because the losses of mlm, itm were not finite" in said and "step 6" not in said


def test_too_many_end_the_run_and_so_do_all(judged):
    bad = GOOD | {"loss/itm": math.nan}
    with pytest.raises(
        DivergedError, match=r"4 .* loss of itm was not finite \(training.stop_on_nonfinite is 4"
    ):
        judged(4, bad)
    with pytest.raises(DivergedError, match="3 updates in a row .* not finite, and the run has no others"):
        judged(3, bad, limit=10, steps=3)


def test_weights_that_are_not_finite_end_the_run_at_once_and_are_told_from_losses(judged):
    told = "weights are not finite, such as model.second: an update by object has made them so"
    with pytest.raises(DivergedError, match=told):
        judged(1, {"loss/mlm": math.nan}, weight=math.nan)
