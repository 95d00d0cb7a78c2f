"""Compiles a kernel that needs more registers than there are; prints the bytes spilled as assembly.py and as
`ptxas -v` count them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

import triton
import triton.language as tl
from flava_kernels import assembly
from flava_kernels.triton_ops import compiling
from flava_kernels.triton_ops.launch import Launch
from triton.backends.nvidia.compiler import get_ptxas


@triton.jit
def product(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at), input_precision="ieee"))


if __name__ == "__main__":
    launch = Launch(
        "product",
        product,
        dict.fromkeys(("x", "y", "out"), "*fp32"),
        {"SIZE": 64},
        num_warps=1,
        num_stages=1,
        arch="sm_80",
    )
    compiled = []
    compile_with_triton = triton.compile

    def remember(*arguments, **options):
        compiled.append(compile_with_triton(*arguments, **options))
        return compiled[-1]

    triton.compile = remember
    counted = assembly.spilled_bytes(compiling.compile_launch(launch).assembly)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled[0].asm["ptx"])
        file.flush()
        command = [get_ptxas(80).path, "-v", "--gpu-name=sm_80", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups())
    print(counted, stores + loads)
