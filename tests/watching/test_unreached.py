"""Parameters that no gradient reaches are named once, whichever ranks hold their elements."""

import logging

import pytest
from test_trainer import toy_trainer

from flava_ds.watching.unreached import UnreachedWatch


def told(folder: str, stage: str, cut: bool) -> list[str]:
    """Trains the toy, with zeros into a layer and, if `cut`, a `detach` behind it; returns the warnings."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("flava_ds").addHandler(handler)
    trainer = toy_trainer(folder, deepspeed_config=stage)
    encoder = trainer.task.text_encoder
    encoder.first.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    if cut:
        encoder.second.register_forward_hook(lambda module, inputs, output: output.detach())
    assert any(isinstance(watcher, UnreachedWatch) for watcher in trainer.watchers)
    assert trainer.fit() == 0
    return [line for line in said if "no gradient" in line]


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero3"])
def test_what_a_detach_cuts_off_is_named_and_nothing_else(run_ranks, tmp_path, stage):
    cut, none = run_ranks(told, 2, str(tmp_path / "cut"), stage, True)
    assert none == [] and len(cut) == 1
    assert (
        "reached text_encoder.first.weight, text_encoder.first.bias, text_encoder.second.weight and 1 more "
        "by step 12, "
    ) in cut[0]
    assert run_ranks(told, 2, str(tmp_path / "whole"), stage, False) == [[], []]
