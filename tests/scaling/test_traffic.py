"""Payloads from parameter groups against bytes that were counted in real runs."""

import json
from pathlib import Path

import pytest

from flava_ds.config.objectives import in_use
from flava_ds.recipes import resolve
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.measure import measure
from flava_ds.scaling.traffic import payloads
from flava_ds.scaling.zero import zero_of
from flava_ds.training.engine_config import read_settings

ROOT = Path(__file__).parents[2]
COUNTED = json.loads((ROOT / "benchmarks" / "results" / "communication.json").read_text(encoding="utf-8"))
CHANGES = {
    "multi-rank all_reduce off": {"use_multi_rank_bucket_allreduce": False},
    "nothing kept whole": {
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    },
}


@pytest.fixture(scope="module")
def debug():
    """flava_debug, measured once."""
    config = resolve("flava_debug", [])
    return config, measure(config, lengths_of(config, None))


@pytest.mark.parametrize(
    "row", [row for row in COUNTED["rows"] if not row["changed"]], ids=lambda row: row["setting"]
)
def test_payloads_equal_the_counted_bytes(debug, row):
    config, work = debug
    name, _, change = row["setting"].partition(", ")
    settings, path = read_settings(name)
    settings["zero_optimization"] |= CHANGES.get(change, {})
    zero = zero_of(settings, path, "fp32", 1)
    source = next(name for name, kind in work.kinds.items() if kind.kind == row["kind"])
    found = payloads(work, source, zero, COUNTED["ranks"], row["samples"], len(in_use(config.objectives)))
    counted = {(part, collective): size for part, collective, size in row["measured"]}
    # with nothing kept, a module that the forward pass calls twice is gathered once more
    assert found == pytest.approx(counted, rel=3e-4 if change == "nothing kept whole" else 1e-12)
