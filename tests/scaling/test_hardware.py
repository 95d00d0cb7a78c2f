"""GPUs are found by the names that CUDA gives them."""

import pytest

from flava_ds.scaling.hardware import like_device


@pytest.mark.parametrize(
    ("name", "memory_gib", "found"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.3, "a100"),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 39.5, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.8, None),
        ("NVIDIA L40S", 44.4, None),
    ],
)
def test_a_part_of_a_gpu_is_none_that_the_planner_knows(name, memory_gib, found):
    gpu = like_device(name, memory_gib)
    assert (gpu and gpu.name) == found
