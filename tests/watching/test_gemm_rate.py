"""The rate of matrix products."""

import torch

from flava_ds.watching.gemm_rate import measure_gemm_rate


def test_gemm_rate_is_a_rate():
    assert measure_gemm_rate(torch.device("cpu"), torch.float32, size=64, repeats=2) > 1e6
