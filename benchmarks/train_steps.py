"""Trains a recipe for a few steps on the demo's data; prints time, rate and MFU per kind of step.

    python benchmarks/train_steps.py --out FOLDER [--recipe flava_base] [--steps 40] [--batch 256]

The run is a normal one on one rank: DeepSpeed, the loader, all six losses. The demo's images are enlarged to
the recipe's size, its captions are tokenised with the recipe's vocabulary, and the image codebook is random
unless the recipe names one. All cores but two load, unless the recipe has more loader processes: a core
decodes some 700 pictures a second (data_loader.py), and steps of a GPU may want three times as many. Every
step is logged, so each waits for the device once. Writes FOLDER/train_steps.json; the last printed line is a
summary.

With `--like OTHER`, the folder of a run of the same steps, it fails where a step's losses are further from
that run's than LIKE, or where torch.compile has compiled anything again after the warm-up.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from scripts import parser_of

from flava_ds.watching.log_line import flop_rate
from flava_ds.watching.run_log import read_log

WARM_UP = 3
"""Steps of each kind to leave out: the first ones compile and allocate."""

LIKE = 1e-2
"""Relative difference of losses in bf16, whose single numbers have 8 digits: 4e-3."""

COMPILED_AGAIN = re.compile(
    r"^(?:\[rank\d+\]:)?V(\d{4} \d\d:\d\d:\d\d\.\d+) .*Recompiling function (\S+)", re.MULTILINE
)
"""A line of TORCH_LOGS=recompiles: month and day, time, and what is compiled."""


def main() -> int:
    """Trains, reads the log, and writes the summary. Returns the run's exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="flava_base")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--kind", choices=["pair", "image", "text"], help="draw no other sources")
    parser.add_argument("--like", type=Path, metavar="OTHER", help="compare losses with those of this run")
    parser.add_argument(
        "--override",
        nargs=argparse.REMAINDER,
        default=[],
        help="further options, as for `flava-ds train`",
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flava_ds.train", options.recipe, *overrides(options), *options.override]
    print(" ".join(command), flush=True)
    recompiles = options.out / "recompiles.log"
    recompiles.unlink(missing_ok=True)
    watching = {"TORCH_LOGS": "recompiles", "TORCH_LOGS_OUT": str(recompiles)} if options.like else {}
    status = subprocess.run(command, env=os.environ | watching).returncode
    if status:
        return status
    # The end of a run always writes one, which at this size takes 3.4 GiB, and nobody goes on from it.
    shutil.rmtree(options.out / "train_steps" / "checkpoints")
    log = read_log(options.out / "train_steps" / "log.jsonl")
    about = {name: log.header[name] for name in ("versions", "hardware", "git")}
    about["git"] = about["git"] or {"commit": os.environ.get("FLAVA_COMMIT", "unknown")}
    summary = {"recipe": options.recipe, "batch": options.batch, **about, "kinds": summarize(log.steps)}
    (options.out / "train_steps.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if options.like:
        others = read_log(options.like / "train_steps" / "log.jsonl").steps
        said = recompiles.read_text(encoding="utf-8") if recompiles.exists() else ""
        wrong = [*unlike(log.steps, others), *compiled_again(said, log.steps)]
        if wrong:
            print("\n".join(f"error: {what}" for what in wrong))
            return 1
    print("; ".join(describe(kind, found) for kind, found in summary["kinds"].items()))
    return 0


def unlike(steps: list[dict], others: list[dict]) -> list[str]:
    """Returns the losses of steps that differ by more than LIKE from those of another run."""
    wrong = []
    if [(step["step"], step["kind"]) for step in steps] != [(step["step"], step["kind"]) for step in others]:
        return [f"{len(steps)} steps are not the other run's {len(others)}, of the same kinds"]
    for mine, other in zip(steps, others, strict=True):
        for name, value in other.items():
            if name.startswith("loss/") and not abs(mine[name] - value) <= LIKE * abs(value):
                wrong.append(f"step {mine['step']}: {name} is {mine[name]:.4f}, not {value:.4f}")
    return wrong


def compiled_again(said: str, steps: list[dict]) -> list[str]:
    """Returns what torch has compiled again after the warm-up, given its log and the run's records."""
    warm = sorted(step["time"] for step in steps)[WARM_UP - 1]
    year, wrong = datetime.datetime.fromtimestamp(warm).year, []
    for when, what in COMPILED_AGAIN.findall(said):
        at = datetime.datetime.strptime(f"{year}{when}", "%Y%m%d %H:%M:%S.%f")
        if at.timestamp() > warm:
            wrong.append(f"{what} was compiled again after {WARM_UP} steps")
    return wrong


def overrides(options: argparse.Namespace) -> list[str]:
    """Returns the overrides for a run of a few steps on the demo's data."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.recipes import RECIPES

    data = unpack(options.out / "data")
    recipe = RECIPES[options.recipe]()
    shards = {"pair": data / "pairs-train", "image": data / "images", "text": data / "text"}
    changed = {
        "name": "train_steps",
        "logging.run-directory": options.out,
        "logging.every-steps": 1,
        "logging.no-tensorboard": None,
        "checkpoint.every-steps": 0,
        "checkpoint.no-resume": None,
        "training.total-steps": options.steps,
        "training.global-batch-size": options.batch,
        "schedule.warmup-steps": options.steps,
    }
    changed["data.num-workers"] = max(recipe.data.num_workers, len(os.sched_getaffinity(0)) - 2)
    if recipe.codebook_weights is None:
        changed["codebook-weights"] = "random"
    for name, source in recipe.data.sources.items():
        changed[f"data.sources.{name}.shards"] = shards[source.kind]
        changed[f"data.sources.{name}.global-batch-size"] = options.batch
        if options.kind not in (None, source.kind):
            changed[f"data.sources.{name}.weight"] = 0
        if source.kind == "pair":
            changed[f"data.sources.{name}.caption-key"] = "captions"
    return [
        word
        for name, value in changed.items()
        for word in ((f"--{name}",) if value is None else (f"--{name}", str(value)))
    ]


def summarize(steps: list[dict]) -> dict[str, dict[str, float]]:
    """Returns medians over each kind's steps after its warm-up; kinds without any are left out."""
    found = {}
    for kind in ("pair", "image", "text"):
        kept = [step for step in steps if step["kind"] == kind][WARM_UP:]
        if kept:
            names = ("seconds_per_step", "samples_per_second", "flops_per_second", "mfu", "data_wait")
            found[kind] = {
                "steps": len(kept),
                **{name: statistics.median(step[name] for step in kept) for name in names},
            }
    return found


def describe(kind: str, found: dict[str, float]) -> str:
    """Formats one kind's numbers; MFU is relative to the matrix product rate measured on the device."""
    rate = f"{flop_rate(found['flops_per_second'])} = {100 * found['mfu']:.0f} % of GEMM"
    return (
        f"{kind} {1e3 * found['seconds_per_step']:.0f} ms, {found['samples_per_second']:.0f} samples/s, "
        f"{rate}, data wait {100 * found['data_wait']:.0f} %"
    )


if __name__ == "__main__":
    sys.exit(main())
