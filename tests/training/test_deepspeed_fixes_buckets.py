"""Gradients that fill several buckets, of which ZeRO reduces one while the next is still filling, in updates
of one and of several micro-batches.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from test_engine import compare_stages
from toy import partition_everything

from flava_ds.training import deepspeed_fixes
from flava_ds.training.engine_config import shipped_settings

STAGES = ("zero1", "zero1_no_overlap", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")


def with_small_buckets(folder: Path, name: str) -> str:
    """Writes a shipped file, but with buckets of 300 of the toy's 3,700 elements, and returns its path."""
    path = Path(partition_everything(folder, name)) if "3" in name else folder / f"{name}.json"
    settings = json.loads((path if path.exists() else shipped_settings()[name]).read_text())
    settings["zero_optimization"]["reduce_bucket_size"] = 300
    path.write_text(json.dumps(settings))
    return str(path)


def compare_untold(stages: tuple[str, ...], cases: tuple[tuple[int, str], ...]) -> dict[tuple, float]:
    """`compare_stages` with ZeRO that is not told of the last backward pass."""
    with mock.patch.object(deepspeed_fixes, "tell_the_last_pass"):
        return compare_stages(stages, cases)


@pytest.mark.distributed
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_micro_batches_add_up_where_gradients_fill_several_buckets(run_ranks, tmp_path, micro_batches):
    stages = tuple(with_small_buckets(tmp_path, name) for name in STAGES)
    for errors in run_ranks(compare_stages, 2, stages, ((micro_batches, "frozen"),)):
        assert len(errors) == len(STAGES)
        assert max(errors.values()) < 1e-6, errors


@pytest.mark.distributed
def test_upstream_still_learns_too_late_which_backward_pass_is_the_last(run_ranks, tmp_path):
    stages = tuple(with_small_buckets(tmp_path, name) for name in ("zero1", "zero2_offload", "zero3_offload"))
    for errors in run_ranks(compare_untold, 2, stages, ((2, "frozen"),)):
        assert min(errors.values()) > 0.01, errors
