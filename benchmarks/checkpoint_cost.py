"""Measures a checkpoint's cost for docs/checkpoints.md: training pause, time until on disk, bytes.

    python benchmarks/checkpoint_cost.py [--rounds 3] [--folder DIR] && make docs

One rank, ZeRO-1, fp32, a FLAVA of about 100 million parameters with AdamW's moments. Rounds take the methods
in turn, so that drift of the machine affects all of them: ours in the background, ours with training paused
(both hash every byte and wait for the disk), torch.save of the same tensors, and DeepSpeed's save_checkpoint
(neither hashes nor waits; waiting for the disk is measured separately). Results go to
benchmarks/results/checkpoint_cost.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scripts import parser_of

from flava_ds.batch import Batch
from flava_ds.checkpoints.saver import Saver, Status
from flava_ds.config import Config
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.hf.parity import random_batch
from flava_ds.ranks.distributed import start, stop
from flava_ds.recipes import resolve
from flava_ds.training import fragments
from flava_ds.training.engine import Engine

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "checkpoint_cost.json"
LAYERS = {"image": 1, "text": 1, "multimodal": 1}
"""Most of the rest is word embeddings and the heads over codebook and vocabulary."""


def main() -> int:
    """Measures and writes the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="folder to write to, on the storage to measure",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = Bench(Path(folder)).measure(options.rounds)
    options.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    stop()
    return 0


class Bench:
    """A run that repeats the same text step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = shallow_model(folder)
        world = start(600)
        module = build_task(self.config)
        self.engine = Engine(module, self.config, world)
        self.batch: Batch = random_batch(Kind.TEXT, self.config)
        self.denominators = {
            name: torch.tensor(float(max(count, 1))) for name, count in module.counts(self.batch).items()
        }
        self.savers = {
            mode: Saver(self.engine, with_mode(self.config, mode)) for mode in ("background", "standing")
        }
        self.saves = 0

    def measure(self, rounds: int) -> dict:
        """Measures all methods in turn, after a round that allocates. Returns the medians."""
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "flava_ds in the background": lambda: self.ours("background"),
            "flava_ds while training stands": lambda: self.ours("standing"),
            "torch.save": lambda: self.theirs(self.torch_save),
            "DeepSpeed save_checkpoint": lambda: self.theirs(self.deepspeed_save),
        }
        self.steps(3)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        undisturbed, loads = [], []
        for number in range(rounds + 1):
            undisturbed += self.steps(5)
            loads.append(os.getloadavg()[0])
            for name, way in ways.items():
                row = way()
                print(f"round {number}, {name}: {row}", flush=True)
                if number:
                    found[name].append(row)
        from flava_kernels.bench.machine import device_name

        return {
            **{
                "machine": device_name(torch.device("cpu")),
                "cores": len(os.sched_getaffinity(0)),
                "load": statistics.median(loads),
            },
            "torch": torch.__version__.partition("+")[0],
            "rounds": rounds,
            "parameters": sum(parameter.numel() for parameter in self.engine.module.parameters()),
            "undisturbed_step_s": statistics.median(undisturbed),
            "ways": {
                name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
                for name, rows in found.items()
            },
        }

    def steps(self, count: int) -> list[float]:
        """Makes updates. Returns each one's seconds."""
        taken = []
        for _ in range(count):
            begun = time.perf_counter()
            self.engine.begin(Kind.TEXT, 1e-5)
            self.engine.forward_backward(self.batch, self.denominators)
            self.engine.update()
            taken.append(time.perf_counter() - begun)
        return taken

    def ours(self, mode: str) -> dict[str, float]:
        """Saves and, in the background mode, trains until the checkpoint is complete."""
        saver, begun, meanwhile = self.savers[mode], time.perf_counter(), []
        self.saves += 1
        folder = saver.save(self.saves, {})
        stood = time.perf_counter() - begun
        while saver.status != Status.IDLE:
            meanwhile += self.steps(1)
            saver.observe([int(saver.status)])
        done = time.perf_counter() - begun
        row = {"stands_s": stood, "on_disk_s": done, "bytes": size_of(folder.local)}
        return row | ({"step_meanwhile_s": statistics.median(meanwhile)} if meanwhile else {})

    def theirs(self, save: Callable[[Path], None]) -> dict[str, float]:
        """Saves with another library, then waits for the disk."""
        folder = self.folder / "theirs"
        folder.mkdir()
        begun = time.perf_counter()
        save(folder)
        stood = time.perf_counter() - begun
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        row = {"stands_s": stood, "on_disk_s": time.perf_counter() - begun, "bytes": size_of(folder)}
        shutil.rmtree(folder)
        return row

    def torch_save(self, folder: Path) -> None:
        """Pickles the tensors that our checkpoint contains."""
        torch.save(
            {
                f"{key}/{part.name}": tensor
                for part in fragments.owned(self.engine)
                for key, tensor in part.tensors.items()
            },
            folder / "all.pt",
        )

    def deepspeed_save(self, folder: Path) -> None:
        """Writes DeepSpeed's own checkpoint: module, fp32 weights and moments."""
        self.engine.deepspeed.save_checkpoint(str(folder), tag="all", save_latest=False)


def shallow_model(folder: Path) -> Config:
    """Returns flava_base with fewer layers, in fp32, on one rank."""
    layers = [
        word for name, count in LAYERS.items() for word in (f"--model.{name}.num-hidden-layers", str(count))
    ]
    words = [
        "--name",
        "cost",
        "--logging.run-directory",
        str(folder),
        "--training.precision",
        "fp32",
        "--training.global-batch-size",
        "8",
    ]
    return resolve("flava_base", [*words, *layers])


def with_mode(config: Config, mode: str) -> Config:
    """Returns the run with one method of saving, its own folder, and a single checkpoint kept."""
    rules = dataclasses.replace(config.checkpoint, asynchronous=mode == "background", keep_last=1)
    return dataclasses.replace(config, name=mode, checkpoint=rules)


def size_of(folder: Path) -> int:
    """Adds up a folder's files in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
