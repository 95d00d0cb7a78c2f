"""Every operator's kernels pass Triton's own launch without a GPU: binder, specialisation, compiler, grid."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flava_kernels import OPS

CACHE = Path(sys.prefix) / "triton-cache"
"""As of test_aot.py: what has not changed is compiled once."""
FOLDING = ("varlen_attention", "add_layer_norm")
"""Operators with a case more, which sums the gradient of the bias of the layer before."""


@pytest.mark.aot
def test_every_operator_is_launched_for_sm_90_in_fp32_and_bf16():
    """The compiler of test_aot.py is given types by hand; here they come from tensors."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("jit_launches.py")
    done = subprocess.run(
        [sys.executable, script],
        env=environment | {"TRITON_CACHE_DIR": str(CACHE)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for dtype in ("float32", "bfloat16"):
        cases = [name for name, _, of in told["called"] if of == dtype]
        assert set(cases) == set(OPS)
        assert all(cases.count(name) == (3 if name in FOLDING else 2) for name in OPS)
    # LayerNorm and GELU: two kinds of rows, widths, dtypes; with and without a residual, a sum, a bias,
    # and the bias of the layer before
    assert told["binaries"]["_forward"] == 12 and told["binaries"]["_backward"] == 18
    assert min(told["binaries"].values()) >= 2
