"""Compares our loader with open_clip's, plain webdataset + torchvision, and decode + crop alone.

    python benchmarks/data_loader.py --shards FOLDER [--rounds 5] [--samples 2048] [--out FILE]

FOLDER gets 2000 JPEGs of 500 x 375 with captions (photo_shards.py) unless it has them. Batches of 64, crops
of 224 pixels, two loader processes of one thread each. Each measurement runs in its own process
(loader_rows.py) on the same shards; each round takes all of them in turn, and ratios are computed within a
round, so that drift of the machine affects all alike. The metric is samples per CPU second: user and system
time of the process and its workers. FILE defaults to benchmarks/results/data_loader.json.

open_clip 3.3.0 needs webdataset 0.2.86, older than the one we test with, so install it in a separate
environment together with flava_ds:

    pip install 'open_clip_torch[training]==3.3.0'

Without it its row is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from photo_shards import photo_shards
from scripts import parser_of

ROWS_SCRIPT = Path(__file__).parent / "loader_rows.py"
ROWS = (
    "decode_crop",
    "flava_ds",
    "open_clip",
    "webdataset_pillow",
    "webdataset_uint8",
    "pillow",
    "decode_crop_two_views",
    "flava_ds_two_views",
    "webdataset_pillow_two_views",
    "pillow_two_views",
)
RATIOS = {
    "flava_ds / open_clip": ("flava_ds", "open_clip", 3.5),
    "flava_ds / webdataset + torchvision": ("flava_ds", "webdataset_pillow", None),
    "flava_ds / webdataset + torchvision, uint8": ("flava_ds", "webdataset_uint8", None),
    "flava_ds / decode + crop alone": ("flava_ds", "decode_crop", 0.8),
    "flava_ds, two views and masks / webdataset + Pillow, two views without masks": (
        "flava_ds_two_views",
        "webdataset_pillow_two_views",
        3.5,
    ),
    "decode + crop alone / Pillow's alone, two views": ("decode_crop_two_views", "pillow_two_views", 3.5),
    "flava_ds, two views and masks / Pillow's decode + crop alone, two views": (
        "flava_ds_two_views",
        "pillow_two_views",
        None,
    ),
}
"""Which rates are divided, and the target of the ratio."""


def main() -> None:
    """Runs all rounds, prints and writes the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="folder of the pictures; filled if empty")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--samples", type=int, default=2048, help="samples of one measurement, after a warm-up of 512"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data_loader.json")
    options = parser.parse_args()
    pictures = photo_shards(options.shards)
    names = [name for name in ROWS if name != "open_clip" or importlib.util.find_spec("open_clip_train")]
    if "open_clip" not in names:
        how = "install it with pip install 'open_clip_torch[training]==3.3.0', best in a separate environment"
        print(f"open_clip is left out: {how}", file=sys.stderr)
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            runs[name].append(run_process(name, options.shards, options.samples))
            print(
                f"round {number + 1} {name}: {per_cpu_second(runs[name][-1]):.0f} samples per CPU second",
                flush=True,
            )
        report = summarize(runs) | {
            "pictures": pictures,
            "rounds": number + 1,
            "samples": options.samples,
            "machine": machine(),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for ratio in report["ratios"]:
        print(
            f"{ratio['what']}: {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}), wanted "
            f"{ratio['wanted'] or '-'}"
        )


def summarize(runs: dict[str, list[dict]]) -> dict:
    """Computes each row's rates and the ratios with targets."""
    return {
        "rows": [summarize_row(name, found) for name, found in runs.items()],
        "ratios": [
            summarize_ratio(what, runs)
            for what, (above, below, _) in RATIOS.items()
            if above in runs and below in runs
        ],
        "versions": next(iter(runs.values()))[0]["versions"],
    }


def run_process(name: str, shards: Path, samples: int) -> dict:
    """Measures one row in a new process. Raises: SystemExit with its error output."""
    command = [sys.executable, str(ROWS_SCRIPT), name, str(shards), "--samples", str(samples)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {name} failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def per_cpu_second(run: dict) -> float:
    """Returns samples per CPU second."""
    return run["samples"] / run["cpu_seconds"]


def summarize_row(name: str, runs: list[dict]) -> dict:
    """Returns the medians of a row's rates over the rounds."""
    rates = [per_cpu_second(run) for run in runs]
    return {
        "row": name,
        "samples_per_cpu_second": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "samples_per_second": statistics.median(run["samples"] / run["seconds"] for run in runs),
    }


def summarize_ratio(what: str, runs: dict[str, list[dict]]) -> dict:
    """Returns the median of a ratio that is computed per round."""
    above, below, wanted = RATIOS[what]
    quotients = [per_cpu_second(a) / per_cpu_second(b) for a, b in zip(runs[above], runs[below], strict=True)]
    return {
        "what": what,
        "median": statistics.median(quotients),
        "low": min(quotients),
        "high": max(quotients),
        "wanted": wanted,
    }


def machine() -> dict:
    """Returns the processor's name and our share of it."""
    import torch
    from flava_kernels.bench.machine import device_name

    return {
        "processor": device_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[1],
    }


if __name__ == "__main__":
    main()
