"""Counts the bytes that a training step's collectives move, and writes them beside theory into docs/communication.md.

    python benchmarks/communication.py [--check]

Two gloo ranks take steps of flava_debug under each setting of SETTINGS; what is counted depends on shapes alone, not on the machine. Raw numbers
go to benchmarks/results/communication.json. `--check` measures nothing and exits with status 1 when the page differs from those numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "communication.json"
PAGE = ROOT / "docs" / "communication.md"
RANKS, STEPS, BLOCK = 2, 36, 4
"""Kinds come in blocks, because ZeRO-3 moves less when the step before was of the same kind."""
SETTINGS: dict[str, tuple[str, dict]] = {
    "zero0": ("zero0", {}),
    "zero1": ("zero1", {}),
    "zero1, multi-rank all_reduce off": ("zero1", {"use_multi_rank_bucket_allreduce": False}),
    "zero2": ("zero2", {}),
    "zero2, multi-rank all_reduce off": ("zero2", {"use_multi_rank_bucket_allreduce": False}),
    "zero3": ("zero3", {}),
    "zero3, nothing kept whole": (
        "zero3",
        {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0},
    ),
}
"""What is measured: a file of ds_configs, and what is changed in its zero_optimization."""

PREAMBLE = """# Communication

What the collectives of one training step move, counted as they are called (`flava_ds/training/communication.py`) on {ranks} gloo ranks for
`{recipe}` ({weights} of trainable weights in fp32), beside theory. Written by `python benchmarks/communication.py`; the numbers depend on shapes alone.

The columns of parts show payloads: the whole tensor that is reduced or gathered. *Sent by a rank* is what leaves each of w ranks with ring algorithms:
2 (w - 1) / w of the payload of an all_reduce, (w - 1) / w of any other. *Theory* is computed from shapes, for what DeepSpeed does; the last column
compares with what the ZeRO paper lets gradients and weights cost.

"""
NOTES = """
What it shows:

- **The contrastive loss sends features forward and three numbers per sample.** No gradient of a feature travels: all its collectives are gathers, and a
  test fails if one is not (`tests/training/test_communication.py`, which also holds every "equal" of this table).
- **ZeRO-1 and 2 send more than the paper says.** DeepSpeed's default reduces a bucket's gradients with one all_reduce, of which each rank keeps its part:
  gradients cost what they cost without ZeRO, and the gathered weights come on top. With `use_multi_rank_bucket_allreduce` off they travel as one reduce to
  each owner and the volume is the paper's, in smaller messages. Which is faster depends on the network; this page counts bytes, not seconds.
- **ZeRO-0 reduces idle parameters as zeros**, ZeRO-1 and 2 gather idle weights; ZeRO-3 moves only what a step uses, but for the small parameters that
  it keeps whole.
- **ZeRO-3 as shipped keeps what the forward pass gathered**, so that weights travel once; with nothing kept whole they travel twice, as in the paper.
- **A change of kind costs ZeRO-3 its trace**: the first steps of a block fetch weights more than once, in more calls. That is what `data.block_steps` is for.
"""


def main() -> int:
    """Measures and writes, or compares, or (with --measure) is one rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="measure nothing; exit with 1 when the page differs from the results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_all(options.measure)
        return 0
    if options.check:
        return int(page(json.loads(RESULTS.read_text(encoding="utf-8"))) != PAGE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(Path(folder))
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    return 0


def run_ranks(folder: Path) -> None:
    """Starts the ranks in `folder`."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.recipes.demo import DATA

    unpack(folder / DATA)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run([*torchrun, str(Path(__file__).resolve()), "--measure", str(folder)], cwd=folder, env=environment, check=True)


def measure_all(folder: Path) -> None:
    """On each rank: takes the steps of every setting; rank 0 writes their payloads beside theory."""
    from flava_ds.build import build
    from flava_ds.recipes import resolve
    from flava_ds.training import communication as bytes_of
    from flava_ds.training.distributed import stop

    rows, trainable = [], 0
    for number, name in enumerate(SETTINGS):
        overrides = ["--name", f"setting{number}", "--engine.deepspeed-config", str(write_setting(folder, number, name))]
        quiet = ["--logging.every-steps", "1000", "--logging.no-tensorboard", "--checkpoint.every-steps", "0", "--training.total-steps", "1000"]
        quiet += ["--data.block-steps", str(BLOCK)]
        trainer = build(resolve("flava_debug", [*overrides, *quiet]))
        for (kind, changed), (samples, calls) in pick(bytes_of.measure(trainer, STEPS), trainer.engine.stage).items():
            theory = bytes_of.step_payloads(trainer, kind, samples)
            rows.append({"setting": name, "kind": kind, "changed": changed, "samples": samples, "calls": len(calls)})
            rows[-1] |= {"measured": listed(bytes_of.payloads(calls)), "theory": listed(theory), "paper": bytes_of.paper_bytes(trainer, kind)}
        trainable = bytes_of.trainable_bytes(trainer)
        trainer.metrics.close()
        if trainer.world.is_main:
            (folder / "results.json").write_text(json.dumps({"ranks": RANKS, "recipe": "flava_debug", "weights": trainable, "rows": rows}), encoding="utf-8")
    stop()


def write_setting(folder: Path, number: int, name: str) -> Path:
    """Writes the DeepSpeed JSON of a setting; every rank writes the same bytes to a file of its own."""
    base, changes = SETTINGS[name]
    settings = json.loads((ROOT / "ds_configs" / f"{base}.json").read_text(encoding="utf-8"))
    settings["zero_optimization"] |= changes
    path = folder / f"setting{number}_rank{os.environ['RANK']}.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def pick(measured: list[tuple[str, int, list]], stage: int) -> dict[tuple[str, bool], tuple[int, list]]:
    """Returns the last step of a block by kind, and for ZeRO-3 the last one that followed a step of another kind."""
    steps = {(kind, False): (samples, calls) for kind, samples, calls in measured[BLOCK - 1 :: BLOCK]}
    if stage == 3:
        pairs = zip(measured, measured[1:], strict=False)
        steps |= {(kind, True): (samples, calls) for (before, *_), (kind, samples, calls) in pairs if kind != before}
    return steps


def listed(payloads: dict[tuple[str, str], int]) -> list[list]:
    """Turns payloads into JSON, in a fixed order."""
    return [[part, collective, size] for (part, collective), size in sorted(payloads.items()) if size]


def page(results: dict) -> str:
    """Writes the page: payloads per part, and what leaves a rank, measured, in theory and in the ZeRO paper."""
    from flava_ds.training.communication import PARTS, sent

    found = {part for row in results["rows"] for part, *_ in row["measured"]}
    parts = [part for part in PARTS if part in found] + sorted(found - set(PARTS))
    lines = [["setting", "step", *parts, "calls", "sent by a rank", "theory", "gradients and weights against the paper"]]
    lines.append(["---"] * len(lines[0]))
    for row in results["rows"]:
        measured, theory = ({(part, collective): size for part, collective, size in row[what]} for what in ("measured", "theory"))
        zero = sent({key: size for key, size in measured.items() if key[0] in ("gradients", "weights")}, results["ranks"])
        apart = sent(measured, results["ranks"]) / sent(theory, results["ranks"]) - 1
        agrees = "equal" if measured == theory else "none" if row["changed"] else f"{apart:+.3%}"
        cells = [row["setting"], row["kind"] + (" after another kind" if row["changed"] else ""), *(cell(measured, part) for part in parts)]
        lines.append([*cells, str(row["calls"]), kib(sent(measured, results["ranks"])), agrees, f"{zero / row['paper']:.2f} of {kib(row['paper'])}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return PREAMBLE.format(ranks=results["ranks"], recipe=results["recipe"], weights=kib(results["weights"])) + table + "\n" + NOTES


def cell(payloads: dict[tuple[str, str], int], part: str) -> str:
    """Names a part's collectives with their payloads."""
    return ", ".join(f"{collective} {kib(size)}" for (what, collective), size in payloads.items() if what == part) or "none"


def kib(size: float) -> str:
    """Spells bytes, in KiB from 1024 on."""
    return f"{size:.0f} B" if size < 1024 else f"{size / 1024:,.1f} KiB" if size < 100 * 1024 else f"{size / 1024:,.0f} KiB"


if __name__ == "__main__":
    sys.exit(main())
