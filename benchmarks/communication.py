"""Counts the bytes that a training step's collectives move, against theory, for docs/communication.md.

    python benchmarks/communication.py && make docs

Two gloo ranks take steps of flava_debug under each setting of SETTINGS; what is counted depends on shapes
alone, not on the machine. The numbers go to benchmarks/results/communication.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts import on_ranks, parser_of

from flava_ds.storage.atomic import write_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "communication.json"
RANKS, STEPS, BLOCK = 2, 36, 4
"""Kinds come in blocks, because ZeRO-3 moves less if the previous step was of the same kind."""
SETTINGS: dict[str, tuple[str, dict]] = {
    "zero0": ("zero0", {}),
    "zero1": ("zero1", {}),
    "zero1, multi-rank all_reduce off": ("zero1", {"use_multi_rank_bucket_allreduce": False}),
    "zero2": ("zero2", {}),
    "zero2, multi-rank all_reduce off": ("zero2", {"use_multi_rank_bucket_allreduce": False}),
    "zero3": ("zero3", {}),
    "zero3, nothing kept whole": (
        "zero3",
        {
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        },
    ),
}
"""Measured settings: a file of ds_configs, and changes in its zero_optimization."""


def main() -> int:
    """Measures and writes the results, or (with --measure) runs as one rank."""
    parser = parser_of(__doc__)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_all(options.measure)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(Path(folder))
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def run_ranks(folder: Path) -> None:
    """Starts the ranks in `folder`."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.recipes.demo import DATA

    unpack(folder / DATA)
    on_ranks(RANKS, folder, __file__, "--measure", str(folder))


def measure_all(folder: Path) -> None:
    """Makes the steps of every setting on each rank; rank 0 writes their payloads next to theory."""
    from flava_ds.build import build
    from flava_ds.config.objectives import in_use
    from flava_ds.ranks.distributed import stop
    from flava_ds.recipes import resolve
    from flava_ds.scaling import traffic
    from flava_ds.scaling.captions import lengths_of
    from flava_ds.scaling.measure import measure
    from flava_ds.scaling.zero import zero_of
    from flava_ds.watching import communication as bytes_of

    config = resolve("flava_debug", [])
    work, objectives = measure(config, lengths_of(config, None)), len(in_use(config.objectives))
    sources = {part.kind: source for source, part in work.kinds.items()}
    rows = []
    for number, name in enumerate(SETTINGS):
        overrides = [
            "--name",
            f"setting{number}",
            "--engine.deepspeed-config",
            str(write_setting(folder, number, name)),
        ]
        quiet = [
            "--logging.every-steps",
            "1000",
            "--logging.no-tensorboard",
            "--checkpoint.every-steps",
            "0",
            "--training.total-steps",
            "1000",
        ]
        quiet += ["--data.block-steps", str(BLOCK)]
        trainer = build(resolve("flava_debug", [*overrides, *quiet]))
        zero = zero_of(trainer.engine.settings, Path(name), "fp32", 1)
        for (kind, changed), (samples, calls) in pick(
            bytes_of.measure(trainer, STEPS), trainer.engine.stage
        ).items():
            theory = traffic.payloads(work, sources[kind], zero, RANKS, samples, objectives)
            rows.append(
                {"setting": name, "kind": kind, "changed": changed, "samples": samples, "calls": len(calls)}
            )
            rows[-1] |= {
                "measured": listed(bytes_of.payloads(calls)),
                "theory": listed(theory),
                "paper": paper_bytes(work, sources[kind], zero, RANKS),
            }
        trainer.recorder.close()
        if trainer.world.is_main:
            found = {"ranks": RANKS, "recipe": "flava_debug", "weights": 4 * work.trainable, "rows": rows}
            (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    stop()


def paper_bytes(model: Any, source: str, zero: Any, world: int) -> float:
    """Returns the bytes a rank sends per step for gradients and weights, according to the ZeRO paper."""
    used, weights = zero.width * model.used_by(model.kinds[source].kind), zero.width * model.trainable
    moved = {0: 2 * used, 1: used + weights, 2: used + weights, 3: 3 * used}  # 1, 2: idle weights, too
    return (world - 1) / world * moved[zero.stage]


def write_setting(folder: Path, number: int, name: str) -> Path:
    """Writes the DeepSpeed JSON of a setting; every rank writes the same bytes."""
    base, changes = SETTINGS[name]
    settings = json.loads((ROOT / "ds_configs" / f"{base}.json").read_text(encoding="utf-8"))
    settings["zero_optimization"] |= changes
    path = folder / f"setting{number}.json"
    write_whole(path, json.dumps(settings))
    return path


def pick(measured: list[tuple[str, int, list]], stage: int) -> dict[tuple[str, bool], tuple[int, list]]:
    """Returns the last step of a block by kind; for ZeRO-3 also the last one after another kind."""
    steps = {(kind, False): (samples, calls) for kind, samples, calls in measured[BLOCK - 1 :: BLOCK]}
    if stage == 3:
        pairs = pairwise(measured)
        steps |= {
            (kind, True): (samples, calls) for (before, *_), (kind, samples, calls) in pairs if kind != before
        }
    return steps


def listed(payloads: dict[tuple[str, str], int]) -> list[list]:
    """Converts payloads to JSON, in a fixed order."""
    return [[part, collective, size] for (part, collective), size in sorted(payloads.items()) if size]


if __name__ == "__main__":
    sys.exit(main())
