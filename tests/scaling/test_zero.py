"""What a plan reads of a DeepSpeed JSON, and every slip in one line that names the file."""

from pathlib import Path

import pytest

from flava_ds.errors import ConfigError
from flava_ds.scaling.zero import zero_of

CPU = {"device": "cpu"}


def read(**zero):
    """A plan's reading of one section."""
    return zero_of({"zero_optimization": zero}, Path("ds.json"), "bf16", 1)


def test_defaults_are_deepspeed_s():
    """Source: DeepSpeedZeroConfig, which overlaps in stage 3 unless it is told otherwise."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for stage in (0, 1, 2, 3):
        ours, theirs = read(stage=stage), DeepSpeedZeroConfig(stage=stage)
        assert ours.overlap == theirs.overlap_comm and ours.contiguous == theirs.contiguous_gradients
        assert (ours.bucket, ours.gather_bucket) == (theirs.reduce_bucket_size, theirs.allgather_bucket_size)
        assert (ours.prefetch, ours.max_live) == (theirs.prefetch_bucket_size, theirs.max_live_parameters)
        assert (ours.persistence, ours.max_reuse) == (
            theirs.param_persistence_threshold,
            theirs.max_reuse_distance,
        )
        assert ours.multi_rank_all_reduce == theirs.use_multi_rank_bucket_allreduce
    assert not read(stage=3, overlap_comm=False).overlap and read(stage=1, overlap_comm=True).overlap
    assert read(stage=1, offload_optimizer=CPU).offload and not read(stage=1, offload_optimizer=None).offload


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({}, 'needs an explicit "stage"'),
        ({"stage": 3, "offload_param": CPU}, "zero_optimization.offload_param cannot be planned"),
        (
            {"stage": 1, "reduce_bucket_size": "auto"},
            "reduce_bucket_size is 'auto'; give a number of elements",
        ),
        ({"stage": 1, "overlap_comm": "auto"}, "overlap_comm is 'auto'; give true or false"),
        ({"stage": 1, "offload_optimizer": {"device": "nvme"}}, '"nvme" is refused'),
        ({"stage": 0, "offload_optimizer": CPU}, "offloading needs ZeRO stage 1, 2 or 3"),
    ],
)
def test_slips_name_the_file(zero, message):
    with pytest.raises(ConfigError) as caught:
        read(**zero)
    assert str(caught.value).startswith("ds.json: ") and message in str(caught.value)
