"""Compiles amp_C's Adam from a checkout of NVIDIA's apex, with the CUDA compiler that this machine has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FUNCTIONS = ("multi_tensor_adam", "multi_tensor_adam_capturable", "multi_tensor_adam_capturable_master")
"""What apex's FusedAdam takes from amp_C; csrc/multi_tensor_adam.cu has all three."""
GIVEN = "int, at::Tensor, std::vector<std::vector<at::Tensor>>"
CAPTURABLE = f"({GIVEN}, at::Tensor, float, float, float, at::Tensor, int, int, float, at::Tensor);"
SIGNATURES = (f"({GIVEN}, float, float, float, float, int, int, int, float);", CAPTURABLE, CAPTURABLE)
"""As at 6424da3. Where an apex has others, the library lacks a symbol and cannot be imported."""


def why_not() -> str | None:
    """Returns None, or what is missing to compile it."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA, so nothing can be linked with it"
    if _compiler() is None:
        return "there is no CUDA compiler: neither nvcc on PATH nor CUDA_HOME"
    if shutil.which("ninja", path=_path()) is None:
        return "ninja is not installed, which torch compiles extensions with"
    return None


def build(sources: Path, folder: Path) -> ModuleType:
    """Returns amp_C with FUNCTIONS, compiled from csrc/ of a checkout; about a minute of one core."""
    from torch.utils import cpp_extension

    declared = zip(FUNCTIONS, SIGNATURES, strict=True)
    bound = "".join(f'm.def("{name}", &{name}_cuda);\n' for name in FUNCTIONS)
    binding = folder / "binding.cpp"
    binding.write_text(
        "#include <torch/extension.h>\n"
        + "".join(f"void {name}_cuda{signature}\n" for name, signature in declared)
        + f"PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{\n{bound}}}\n"
    )
    wheels = Path(torch.__file__).parents[1] / "nvidia"  # cuBLAS's headers, where torch came with them
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PATH", _path())
        changed.setattr(cpp_extension, "CUDA_HOME", _toolkit())
        if not torch.cuda.is_available() and "TORCH_CUDA_ARCH_LIST" not in os.environ:
            changed.setenv("TORCH_CUDA_ARCH_LIST", "9.0")  # of a GPU torch asks
        return cpp_extension.load(
            "amp_C",
            [str(binding), str(sources / "csrc" / "multi_tensor_adam.cu")],
            extra_include_paths=[str(path) for path in sorted(wheels.glob("*/include"))],
            extra_cuda_cflags=["-O3", "--use_fast_math"],  # apex's own
            build_directory=str(folder),
            with_cuda=True,
        )


def _path() -> str:
    """PATH with this interpreter's folder, where ninja is if pip installed it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _compiler() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which(str(Path(home, "bin", "nvcc")) if home else "nvcc")


def _toolkit() -> str:
    """Asks the compiler where its toolkit is: nvcc on PATH may be a script elsewhere."""
    command = [_compiler(), "--dryrun", "-x", "cu", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True).stderr
    return str(Path(re.search(r"_HERE_=(.+)", told)[1].strip()).parent)
