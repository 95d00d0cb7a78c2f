"""Compiles kernels for GPUs that are not present; needs only the triton wheel, no driver or device."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from flava_kernels.triton_ops.launch import Launch

FULL_VERSION = triton.__version__
VERSION = ".".join(FULL_VERSION.split(".")[:2])
"""Major and minor version of the compiler."""

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Compiled:
    """The compiler's output for a Launch.

    `ir` is Triton's target-independent intermediate language, `assembly` the disassembled SASS or amdgcn.
    `shared` is in bytes per block, `tensor_memory` in columns (sm_100), `registers` per thread; on gfx942
    these include accumulation registers.
    """

    ir: str
    assembly: str
    registers: int
    shared: int
    tensor_memory: int
    warp_size: int


def compile_launch(launch: Launch) -> Compiled:
    """Compiles a Launch. Raises TypeError under TRITON_INTERPRET=1, which interprets kernels instead."""
    if not isinstance(launch.kernel, JITFunction):
        raise TypeError(
            f"{launch.name} is {type(launch.kernel).__name__}, not a JITFunction: unset TRITON_INTERPRET"
        )
    source = ASTSource(
        launch.kernel, _signature(launch), constexprs=dict(launch.constexprs), attrs=_attributes(launch)
    )
    target = _target(launch.arch)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        assembly, registers = _disassemble(compiled.asm["cubin"])
    else:
        assembly = compiled.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s+(\d+)", assembly)[-1])
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    return Compiled(
        str(compiled.asm["ttir"]), assembly, registers, compiled.metadata.shared, columns, target.warp_size
    )


def _target(arch: str) -> GPUTarget:
    return (
        GPUTarget("hip", arch, 64)
        if arch.startswith("gfx")
        else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    )


def _signature(launch: Launch) -> dict[str, str]:
    """Returns all argument types in the kernel's order. Raises ValueError for a missing or unknown one."""
    names = launch.kernel.arg_names
    given = launch.signature.keys() | launch.constexprs.keys()
    if given != set(names):
        raise ValueError(
            f"{launch.name}: without a type or value: {sorted(set(names) - given)}; not arguments: "
            f"{sorted(given - set(names))}"
        )
    return {name: "constexpr" if name in launch.constexprs else launch.signature[name] for name in names}


def _attributes(launch: Launch) -> dict[tuple[int], list]:
    """Marks arguments as divisible by 16, which the JIT infers from values; else loads are not vectorised."""
    return {
        (parameter.num,): DIVISIBLE
        for parameter in launch.kernel.params
        if parameter.name in launch.signature
        and not parameter.do_not_specialize
        and parameter.name not in launch.unaligned
        and (
            launch.signature[parameter.name].startswith("*")
            or launch.signature[parameter.name] in ("i32", "i64")
        )
    }


def _disassemble(cubin: bytes) -> tuple[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        assembly = subprocess.run(
            [TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return assembly, int(re.findall(r"REG:(\d+)", usage)[-1])
