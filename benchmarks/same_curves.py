"""Compares two commits' training bit by bit: every logged loss, accuracy and gradient norm.

    python benchmarks/same_curves.py d55cb17 HEAD

Each commit is checked out next to the repository and imported from there, with this environment's libraries.
The runs are flava_debug on 1 and 2 ranks in every ZeRO stage, its first steps with our kernels in Triton's
interpreter, and the first 50 steps of the demo's recipe. The result goes to
benchmarks/results/same_curves.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "same_curves.json"
CODEBOOK = Path("flava_ds") / "recipes" / "debug_codebook.safetensors"
SOURCES = ("pair", "image", "text")
COMPARED = ("loss/", "accuracy/", "grad_norm")


@dataclass(frozen=True)
class Run:
    """One way to train."""

    recipe: str
    ranks: int
    stage: int
    steps: int
    kernels: str = "torch"


RUNS = (
    *(Run("flava_debug", ranks, stage, 20) for ranks in (1, 2) for stage in range(4)),
    Run("flava_debug", 1, 1, 2, kernels="triton"),
    Run("demo", 1, 1, 50),
    Run("demo", 2, 1, 50),
)


def main() -> int:
    """Compares two commits. Returns 1 if a number differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument(
        "--only", type=int, nargs="*", help="indices of the runs to make, from 0 (default: all)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        commits = [
            check_out(name, Path(scratch) / side)
            for name, side in ((options.old, "old"), (options.new, "new"))
        ]
        try:
            for number, run in enumerate(RUNS):
                if options.only is None or number in options.only:
                    curves = [train(run, folder) for _, folder in commits]
                    rows.append({**asdict(run), **compare(*curves)})
                    print(json.dumps(rows[-1]), flush=True)
        finally:
            for _, folder in commits:
                subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=False)
    found = {"old": commits[0][0], "new": commits[1][0], "rows": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    different = sum(row["different"] for row in rows)
    print(f"{sum(row['compared'] for row in rows)} numbers compared, {different} differ")
    return 1 if different else 0


def check_out(commit: str, folder: Path) -> tuple[str, Path]:
    """Creates a work tree of a commit. Returns its hash and the folder."""
    subprocess.run(
        ["git", "worktree", "add", "--detach", str(folder), commit], cwd=ROOT, check=True, capture_output=True
    )
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return found.stdout.strip(), folder


def train(run: Run, folder: Path) -> list[dict[str, float]]:
    """Trains with the code in `folder`. Returns the numbers of every step."""
    name = "_".join(str(value) for value in asdict(run).values())
    shutil.rmtree(folder / "curves" / name, ignore_errors=True)
    words = [
        "--name",
        name,
        "--logging.run-directory",
        "curves",
        "--logging.every-steps",
        "1",
        "--logging.no-tensorboard",
    ]
    words += ["--engine.deepspeed-config", f"zero{run.stage}", "--checkpoint.every-steps", "0", "--seed", "0"]
    words += [
        "--training.total-steps",
        str(run.steps),
        "--schedule.warmup-steps",
        "1",
        "--training.precision",
        "fp32",
    ]
    words += ["--codebook-weights", str(folder / CODEBOOK if run.recipe == "flava_debug" else "random")]
    words += settings_of_then(run, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        **{"PYTHONPATH": f"{folder}:{folder / 'kernels'}", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        **{
            "WORLD_SIZE": str(run.ranks),
            "LOCAL_WORLD_SIZE": str(run.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        },
        **({"FLAVA_KERNELS": "triton", "TRITON_INTERPRET": "1"} if run.kernels == "triton" else {}),
    }
    unpack = "from flava_ds.demo.dataset import unpack; from flava_ds.recipes.demo import DATA; unpack(DATA)"
    subprocess.run(
        [sys.executable, "-c", unpack], cwd=folder, env=environment, check=True, capture_output=True
    )
    command = [sys.executable, "-m", "flava_ds.train", run.recipe, *words]
    ranks = [
        subprocess.Popen(
            command, cwd=folder, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(run.ranks)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"{run} failed in {folder}:\n{said[0][-3000:]}")
    lines = (folder / "curves" / name / "log.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return [
        {key: value for key, value in json.loads(line).items() if key.startswith(COMPARED)} for line in lines
    ]


def settings_of_then(run: Run, folder: Path) -> list[str]:
    """Returns options that give new code d55cb17's behaviour; d55cb17 itself gets none.

    Every source gets the seed of its position (now derived from its name), pairs their old transform, and the
    demo its old model.
    """
    if not (folder / "flava_ds" / "config" / "data.py").is_file():
        return []
    words = [
        word for number, name in enumerate(SOURCES) for word in (f"--data.sources.{name}.seed", str(number))
    ]
    transform = "--data.sources.pair.transform"
    words += [
        f"{transform}.crop-scale",
        "0.7",
        "1.0",
        f"{transform}.crop-ratio",
        "0.75",
        "1.3333333333333333",
    ]
    words += [
        f"{transform}.rotation-degrees",
        "8.0",
        f"{transform}.color-jitter",
        "0.3",
        f"{transform}.invert",
        "0.05",
    ]
    words += [f"{transform}.edges", "0.12"]
    if run.recipe != "demo":
        return words
    for encoder, layers in (("image", 4), ("text", 2), ("multimodal", 2)):
        words += [f"--model.{encoder}.hidden-size", "192", f"--model.{encoder}.num-attention-heads", "3"]
        words += [
            f"--model.{encoder}.intermediate-size",
            "768",
            f"--model.{encoder}.num-hidden-layers",
            str(layers),
        ]
    words += [
        "--model.projection-dim",
        "192",
        "--objectives.global-contrastive.weight",
        "1.0",
        "--training.global-batch-size",
        "256",
    ]
    for name, samples in zip(SOURCES, (256, 128, 256), strict=True):
        words += [f"--data.sources.{name}.global-batch-size", str(samples)]
    return words


def compare(old: list[dict[str, float]], new: list[dict[str, float]]) -> dict[str, float]:
    """Counts the numbers of two curves, and those that differ in a bit or are missing from one.

    `largest_relative_difference` is that of numbers which both have.
    """
    compared = different = abs(len(old) - len(new))
    largest = 0.0
    for ours, theirs in zip(old, new, strict=False):
        keys, both = {*ours, *theirs}, {*ours} & {*theirs}
        compared += len(keys)
        different += len(keys - both) + sum(ours[key] != theirs[key] for key in both)
        gaps = (abs(ours[key] - theirs[key]) / abs(ours[key] or 1) for key in both)
        largest = max(largest, *gaps)
    return {"compared": compared, "different": different, "largest_relative_difference": largest}


if __name__ == "__main__":
    sys.exit(main())
