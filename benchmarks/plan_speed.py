"""Times `flava-ds plan`: the first plan of a recipe, which measures it, and later ones.

    python benchmarks/plan_speed.py && make docs

Every command is a process of its own, as a user starts it, and says whether it has loaded torch. Each round
begins with an empty cache. Times are CPU seconds, so that other processes count little. The numbers go to
benchmarks/results/plan_speed.json.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts import parser_of

from flava_ds.storage.atomic import write_json
from flava_ds.storage.files import CACHE_VARIABLE

RESULT = Path(__file__).parent / "results" / "plan_speed.json"
ROUNDS = 3
CASES = (
    ("`flava_base --gpus 64`, the first time", "flava_base --gpus 64"),
    ("again", "flava_base --gpus 64"),
    ("with `--gpu a100 --gpus 16 --engine.deepspeed-config zero2`",
     "flava_base --gpus 16 --gpu a100 --engine.deepspeed-config zero2"),
    ("with `--simulate --scale 8,64,512,4096`", "flava_base --gpus 64 --simulate --scale 8,64,512,4096"),
    ("with `--page plan.html`", "flava_base --gpus 64 --page plan.html"),
    ("with `--data.num-workers 8`, the first time", "flava_base --gpus 64 --data.num-workers 8"),
    ("with `--training.recompute-gelu`, the first time", "flava_base --gpus 64 --training.recompute-gelu"),
    ("`flava_large --gpus 64`, the first time", "flava_large --gpus 64"),
    ("again", "flava_large --gpus 64"),
)  # fmt: skip
"""What is shown, and the words of the command; their order decides what is in the cache."""
COMMAND = "import sys; from flava_ds.cli import main; s = main(); print('torch' in sys.modules); sys.exit(s)"


def timed(words: str, folder: Path, cache: Path) -> tuple[float, bool]:
    """Returns the CPU seconds of a plan, and whether it loaded torch. Raises: CalledProcessError."""
    before = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "plan", *words.split()],
        cwd=folder,
        env={**os.environ, CACHE_VARIABLE: str(cache), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return cpu_seconds() - before, done.stdout.splitlines()[-1] == "True"


def cpu_seconds() -> float:
    """Returns the CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Times all cases and writes their medians."""
    parser_of(__doc__).parse_args()
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            rounds.append([timed(words, Path(name), Path(name) / "cache") for _, words in CASES])
    rows = [
        {"title": title, "seconds": round(statistics.median(took for took, _ in own), 2), "torch": own[0][1]}
        for (title, _), own in zip(CASES, zip(*rounds, strict=True), strict=True)
    ]
    result = {"rounds": ROUNDS, "plans": rows}
    write_json(RESULT, result, indent=1)


if __name__ == "__main__":
    main()
