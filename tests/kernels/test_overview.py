"""The report names every operator, what it uses here, and the reason; the package imports where little is
installed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flava_kernels import OPS, overview
from flava_kernels.triton_ops import launch

ROOT = Path(__file__).parents[2]


def report(mode: str = "auto", interpret: str = "0", before: str = "") -> list[list[str]]:
    """Runs `flava_kernels.report()` in a process of its own and splits its lines at two spaces; the header's
    line stays whole.
    """
    environment = os.environ | {
        "FLAVA_KERNELS": mode,
        "TRITON_INTERPRET": interpret,
        "CUDA_VISIBLE_DEVICES": "",
    }
    code = f"{before}import flava_kernels; flava_kernels.report()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=2) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("mode", "interpret", "implementation", "why"),
    [
        ("auto", "0", "torch", "the tensors are on the CPU"),
        ("auto", "1", "torch", "uses the references on a CPU"),
        ("torch", "1", "torch", "FLAVA_KERNELS=torch"),
        ("triton", "0", "error", "the tensors are on the CPU"),
        ("triton", "1", "triton", "in the interpreter"),
    ],
)
def test_the_report_has_a_row_for_every_operator(mode, interpret, implementation, why):
    (settings, header, *rows) = report(mode, interpret)
    assert settings[0] == f"FLAVA_KERNELS={mode}," and header == ["operator", "implementation", "why"]
    assert [row[0] for row in rows] == list(OPS)
    assert {row[1] for row in rows} == {implementation}
    assert all(why in row[2] for row in rows)


def test_the_report_without_triton():
    hide = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, package=None: None if "
        "name == 'triton' else find(name, package); "
    )
    block = "import sys; sys.modules['triton'] = None; "
    rows = report(before=block + hide)[2:]
    assert [row[1:] for row in rows] == [["torch", "triton is not installed"]] * len(OPS)


def test_the_command_prints_the_report():
    done = subprocess.run(
        [sys.executable, "-m", "flava_kernels"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[1].split() == ["operator", "implementation", "why"]


def test_a_wrong_setting_is_one_line():
    environment = os.environ | {"FLAVA_KERNELS": "bad"}
    done = subprocess.run(
        [sys.executable, "-m", "flava_kernels"], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (
        done.returncode == 1
        and done.stderr == "error: FLAVA_KERNELS is 'bad'; it must be one of auto, torch, triton\n"
    )


@pytest.mark.parametrize(
    ("gpu", "configurations"),
    [
        ("sm_80", "sm_80"),
        ("sm_89", "sm_80"),
        ("sm_90", "sm_90"),
        ("sm_100", "sm_100"),
        ("sm_103", "sm_100"),
        ("sm_120", "sm_80"),
        ("gfx950", "gfx942"),
    ],
)
def test_the_nearest_architecture(gpu, configurations):
    assert launch.nearest(gpu) == configurations


def test_a_gpu_without_its_own_configurations_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "gpu_name", lambda index: "sm_89")
    assert (
        overview._configurations()
        == "configurations of sm_80, the nearest to sm_89: neither compiled nor measured for it"
    )


def test_the_package_imports_beside_a_package_called_kernels():
    """transformers takes any importable `kernels` for Hugging Face's: from the repository's root there must
    be none of ours.
    """
    code = """
import importlib.metadata, importlib.util, pathlib, sys
import transformers, flava_kernels
from transformers import FlavaConfig, FlavaModel
found = importlib.util.find_spec("kernels")
ours = pathlib.Path.cwd()
origin = found and found.origin
assert origin is None or ours not in pathlib.Path(origin).resolve().parents, found
assert "flava_ds" not in importlib.metadata.packages_distributions().get("kernels", ())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_hugging_face_s_kernels_package_stays_itself(tmp_path):
    """A distribution of that name, first on the path as pip would install it: both packages are importable
    and are what they claim to be.
    """
    package, metadata = tmp_path / "kernels", tmp_path / "kernels-0.17.2.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text('__version__ = "0.17.2"\ndef get_kernel(name): return name\n')
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.2\n")
    code = (
        "import transformers, flava_kernels, kernels; from transformers import FlavaModel; "
        "print(kernels.get_kernel('theirs'), len(flava_kernels.OPS))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["theirs", str(len(OPS))]
