"""Entries of zero_optimization: each of those DeepSpeed knows trains as without it, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_engine import compare_stages
from test_engine_config import settings_of

from flava_ds.errors import ConfigError
from flava_ds.training.engine_config import QUANTIZED, REFUSED, UNNAMED, shipped_settings

SHIPPED = {
    key for own in shipped_settings().values() for key in json.loads(own.read_text())["zero_optimization"]
}
"""Compared in test_engine.py."""
TRAINED = {
    "allgather_partitions": (2, False),
    "contiguous_gradients": (2, False),
    "elastic_checkpoint": (1, True),
    "enable_sanity_checks": (3, True),
    "ignore_unused_parameters": (2, False),
    "leaf_module": (3, {"classes": ["torch.nn.Linear"]}),
    "load_from_fp32_weights": (1, False),
    "log_trace_cache_warnings": (3, True),
    "memory_efficient_linear": (3, False),
    "offload_param": (3, {"device": "cpu"}),
    "override_module_apply": (3, False),
    "parameter_alignment": (2, True),
    "pipeline_loading_checkpoint": (3, True),
    "reduce_scatter": (2, False),
    "save_muon_momentum_buffer_in_memory": (3, True),
    "stage3_allgather_sequential": (3, True),
    "stage3_gather_16bit_weights_on_model_save": (3, True),
    "stage3_max_live_parameters": (3, 1),
    "stage3_max_reuse_distance": (3, 1),
    "stage3_model_persistence_threshold": (3, 0),
    "stage3_prefetch_bucket_size": (3, 1),
    "stage3_use_all_reduce_for_fetch_params": (3, True),
    "sub_group_size": (3, 500),
    "use_multi_rank_bucket_allreduce": (2, False),
    "zero_hpz_partition_size": (3, 2),
}
"""(stage, value) of the entries that are trained with here, each a value that is not DeepSpeed's default."""


def test_every_entry_that_deepspeed_knows_is_trained_with_or_refused():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    refused = (known & (REFUSED | UNNAMED).keys()) | {*QUANTIZED}
    assert known == SHIPPED | TRAINED.keys() | refused | {"round_robin_gradients"}
    assert not refused & (SHIPPED | TRAINED.keys())


@pytest.mark.distributed
def test_every_entry_that_may_be_set_trains_as_without_it(run_ranks, tmp_path):
    """All entries of a stage at once, without those that would hide others: whole copies, offloading."""
    files = []
    for number, apart in ((1, ()), (2, ()), (3, ("zero_hpz_partition_size",)), (3, ("offload_param",))):
        settings = json.loads(shipped_settings()[f"zero{number}"].read_text())
        settings["zero_optimization"] |= {"reduce_bucket_size": 300, "stage3_param_persistence_threshold": 0}
        own = {key: value for key, (stage, value) in TRAINED.items() if stage == number and key not in apart}
        settings["zero_optimization"] |= own
        files.append(tmp_path / f"{len(files)}.json")
        files[-1].write_text(json.dumps(settings))
    for errors in run_ranks(compare_stages, 2, tuple(map(str, files)), ((2, "frozen"),)):
        assert len(errors) == len(files)
        assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("key", [*REFUSED, *UNNAMED, *QUANTIZED])
def test_entries_that_would_end_in_deepspeeds_own_error_are_refused(tmp_path: Path, key: str):
    section, _, nested = key.rpartition(".")
    # where nothing is offloaded, an old name is refused even if it is off, and a share even of nothing
    value = {"ratio": 0.0, "zenflow": {}}.get(nested, key not in UNNAMED)
    own = {section: {"device": "cpu", nested: value}} if section else {key: value}
    with pytest.raises(ConfigError, match=f"mine.json: 'zero_optimization.{key}' .*"):
        settings_of(tmp_path, {"zero_optimization": {"stage": 3, **own}})


def test_entries_that_are_off_are_not_refused(tmp_path):
    off = dict.fromkeys(QUANTIZED, False) | {"legacy_stage1": False, "stage3_module_granularity_threshold": 0}
    offload = {"device": "cpu", "ratio": 1.0, "super_offload": False}
    merged = settings_of(tmp_path, {"zero_optimization": {"stage": 3, "offload_optimizer": offload, **off}})
    assert merged["zero_optimization"]["offload_optimizer"] == offload
