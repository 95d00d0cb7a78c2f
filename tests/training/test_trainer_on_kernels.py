"""A whole run on the Triton kernels has the losses and weights of the same run on the torch references, and
goes on bit for bit after a stop: on a GPU, and in Triton's interpreter.
"""

from __future__ import annotations

import kernel_runs
import pytest

CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@pytest.mark.slow
@pytest.mark.triton
def test_a_run_on_the_kernels_equals_that_on_the_references(tmp_path):
    kernel_runs.check(tmp_path, "triton", "cpu", TRITON_INTERPRET="1", **CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", list(kernel_runs.LIMITS))
def test_a_run_on_the_kernels_equals_that_on_the_references_on_the_gpu(tmp_path, precision):
    kernel_runs.check(tmp_path, "triton", "cuda", precision)
