"""A whole run on the Triton kernels, stopped and continued, has the losses and weights of the same run on the
torch references: in Triton's interpreter, where each operator gives the same bits every time, and on a GPU,
where it must also equal an uninterrupted one bit for bit.
"""

from __future__ import annotations

import kernel_runs
import pytest

CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@pytest.mark.slow
@pytest.mark.triton
def test_a_run_on_the_kernels_equals_that_on_the_references(tmp_path):
    kernel_runs.check(tmp_path, "cpu", TRITON_INTERPRET="1", **CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", list(kernel_runs.LIMITS))
def test_a_run_on_the_kernels_equals_that_on_the_references_on_the_gpu(tmp_path, precision):
    kernel_runs.check(tmp_path, "cuda", precision)
    kernel_runs.check_going_on(tmp_path, "cuda", precision)
