"""Collects the wheels that benchmarks/gpu_suite.sh needs on a machine without a network.

    python benchmarks/collect_wheels.py --out wheels [--python 3.12] [--have torch torchvision triton numpy]
    benchmarks/gpu_suite.sh --wheels wheels                       # there

It follows what this project and the tests require, for Linux on x86-64 and the Python of that machine, from
whatever index pip is set to. Packages that the machine has, and NVIDIA's, are left out with all that only
they need. What has no wheel is built here: this project, from a copy, and deepspeed, of which only Python is
used. Peers that no wheel can be had of are named, with what to do instead.
"""

from __future__ import annotations

import email.parser
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from scripts import parser_of

ROOT = Path(__file__).parents[1]
WANTED = ("pytest", "ninja", "liger-kernel", "inf-cl")
"""Besides the project: what runs the tests, what torch compiles apex with, and peers that are only Python."""
NOT_CARRIED = {
    "flash-attn": (
        "its index has sources only, and they compile for hours with nvcc against that machine's torch; a "
        "wheel of its releases page for the same Python, torch and CUDA may be put beside the others"
    ),
    "apex": "carry a checkout and build it there (docs/kernels.md)",
}
"""Peers of flava_kernels/bench/peers.py that this cannot bring, and why."""
LEFT_OUT = (".*", "build", "runs", "*.egg-info", "__pycache__", "*.pyc", "tests", "docs", "benchmarks")
"""What of a folder is not copied to build its wheel."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")


def main() -> int:
    """Collects, and lists what there is. Returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the wheels")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="of the other machine")
    parser.add_argument("--have", nargs="*", default=["torch", "torchvision", "triton", "numpy"])
    parser.add_argument("--want", nargs="*", default=list(WANTED), help="packages besides this project")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    have = {canonicalize_name(name) for name in options.have}
    missing = collect(options.out, [str(ROOT), *options.want], have, options.python)
    for wheel in sorted(options.out.glob("*.whl")):
        print(wheel.name)
    for requirement, said in missing.items():
        print(f"error: no wheel of {requirement}: {said}", file=sys.stderr)
    for peer, why in NOT_CARRIED.items():
        print(f"not carried: {peer}: {why}")
    return 2 if missing else 0


def collect(out: Path, wanted: list[str], have: set[str], python: str) -> dict[str, str]:
    """Puts the wheels of requirements, and of all that they require, into `out`.

    Returns what could not be had, with pip's last word.
    """
    found = {canonicalize_name(parse_wheel_filename(wheel.name)[0]): wheel for wheel in out.glob("*.whl")}
    waiting, missing = list(wanted), {}
    extras: dict[str, set[str]] = {}
    while waiting:
        asked = waiting.pop()
        own = Path(asked).is_dir()
        requirement = Requirement("flava_ds") if own else Requirement(asked)
        name = canonicalize_name(requirement.name)
        if (
            name in have
            or name.startswith("nvidia-")
            or name in extras
            and requirement.extras <= extras[name]
        ):
            continue
        if own or name not in found:
            said = fetch(out, asked, python, build=own)
            if said is not None:
                missing[asked] = said
                continue
            found[name] = next(
                wheel for wheel in out.glob("*.whl") if canonicalize_name(wheel.name.split("-")[0]) == name
            )
        extras.setdefault(name, set()).update(requirement.extras)
        waiting += required(found[name], extras[name], python)
    return missing


def fetch(out: Path, asked: str, python: str, *, build: bool) -> str | None:
    """Downloads one wheel, or builds it if there is none. Returns None, or pip's last word.

    A folder's is built from a copy, because setuptools leaves its work where the sources are.
    """
    if build:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / Path(asked).name
            shutil.copytree(asked, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
            return _run_pip(out, str(copy), python, build=True)
    return _run_pip(out, asked, python, build=False)


def _run_pip(out: Path, asked: str, python: str, *, build: bool) -> str | None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--only-binary=:all:", "--python-version", python, *platforms]
    building = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), asked]
    downloading = [*pip, "download", "--quiet", "--no-deps", *target, "--dest", str(out), asked]
    said = ""
    for command in (building,) if build else (downloading, building):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return None
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return said


def required(wheel: Path, extras: set[str], python: str) -> list[str]:
    """Returns what a wheel requires on the other machine, with some of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    wanted = []
    for line in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate(machine | {"extra": extra}) for extra in ("", *extras)):
            requirement.marker = None
            wanted.append(str(requirement))
    return wanted


if __name__ == "__main__":
    sys.exit(main())
