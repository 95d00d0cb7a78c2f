"""Short runs of `flava_debug` with kernels or references, each a process of its own: what
test_trainer_on_kernels.py does on a GPU and in Triton's interpreter.

    python tests/training/kernel_runs.py FOLDER NAME PRECISION [STOP]
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "kernels")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from flava_ds.build import build  # noqa: E402
from flava_ds.config import CheckpointConfig  # noqa: E402
from flava_ds.demo.dataset import unpack  # noqa: E402
from flava_ds.layers.fused import FoldingLinear  # noqa: E402
from flava_ds.recipes.demo import DATA  # noqa: E402
from flava_ds.recipes.flava_debug import flava_debug  # noqa: E402
from flava_ds.training.task import fold_biases  # noqa: E402
from flava_ds.training.watcher import Watcher  # noqa: E402

STEPS, STOPPED = 6, 3
"""Enough for every kind of step; the interpreter takes seconds for one of so few samples."""
BATCH = 4
KERNELS = "flava_kernels.triton_ops."
TRAINED = {"attention", "contrastive", "fusing", "layer_norm", "linear_cross_entropy", "linear_gelu"}
LIMITS = {"fp32": (1e-4, 1e-3), "bf16": (0.1, 0.1)}
"""Relative differences of losses and gradient norms, and of weights, by the way that they have gone. In fp32
each operator is within 2e-6, and the optimizer divides by small second moments: in the interpreter they
differ by 2e-6 and 1e-4. In bf16 they differ there by 0.03 (a gradient norm) and 0.05.
"""


class Stops(Watcher):
    """Notes the steps, and after so many sends its own process a signal, as a scheduler does."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.steps: list[int] = []

    def after_step(self, step: int, *, stopping: bool) -> None:
        self.steps.append(step)
        if step + 1 == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, name: str, precision: str, stop: int = 0) -> None:
    """Trains, or goes on; writes the status, the weights before and after, and which kernels were loaded."""
    import interpreter_bf16

    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreter_bf16.install()
    os.chdir(folder)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch's own operators on a GPU
    recipe = flava_debug()
    sources = {
        each: dataclasses.replace(source, global_batch_size=BATCH)
        for each, source in recipe.data.sources.items()
    }
    config = dataclasses.replace(
        recipe,
        name=name,
        data=dataclasses.replace(recipe.data, sources=sources),
        training=dataclasses.replace(recipe.training, total_steps=STEPS, precision=precision),
        checkpoint=CheckpointConfig(every_steps=STEPS),
        logging=dataclasses.replace(recipe.logging, tensorboard=False),
    )
    trainer = build(config)
    if os.environ["FLAVA_KERNELS"] == "triton":
        fold_biases(trainer.engine.module, True)  # which the engine does on a GPU alone
    stops = Stops(stop)
    trainer.watchers += (stops,)
    before = _weights(trainer)
    status = trainer.fit()
    loaded = {module.removeprefix(KERNELS) for module in sys.modules if module.startswith(KERNELS)}
    torch.save({"before": before, "after": _weights(trainer)}, folder / f"{name}.pt")
    told = {"status": status, "loaded": sorted(loaded), "device": trainer.world.device.type}
    told["steps"] = stops.steps
    told["folds"] = all(p.folds for p in trainer.engine.module.modules() if isinstance(p, FoldingLinear))
    (folder / f"{name}.json").write_text(json.dumps(told))


def _weights(trainer) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in trainer.engine.module.state_dict().items()
    }


def run(
    folder: Path, implementation: str, name: str, precision: str, stop: int = 0, **environment: str
) -> dict:
    """Trains in a process of its own; returns what it wrote."""
    command = [sys.executable, __file__, str(folder), name, precision, str(stop)]
    settings = {"FLAVA_KERNELS": implementation, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | settings | environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / f"{name}.json").read_text())


def logged(folder: Path, name: str) -> list[dict[str, float]]:
    """Losses and gradient norms of a run's steps."""
    lines = (folder / "runs" / name / "log.jsonl").read_text().splitlines()[1:]
    return [
        {
            key: value
            for key, value in json.loads(line).items()
            if key.startswith(("loss/", "grad_norm", "kind"))
        }
        for line in lines
    ]


def check(folder: Path, device: str, precision: str = "fp32", **environment: str) -> None:
    """Asserts that a run with references, and one with kernels that is stopped and goes on in another
    process, have the same losses and weights within LIMITS.
    """
    unpack(folder / DATA)
    told = run(folder, "torch", "references", precision, **environment)
    assert (told["status"], told["device"]) == (0, device) and "attention" not in told["loaded"]
    assert told["folds"] == (device == "cuda")
    stopped = run(folder, "triton", "kernels", precision, STOPPED, **environment)
    assert stopped["status"] == 128 + signal.SIGTERM
    begun = torch.load(folder / "kernels.pt")
    told = run(folder, "triton", "kernels", precision, **environment)
    assert told["status"] == 0 and stopped["steps"] + told["steps"] == [*range(STEPS)] and told["steps"]
    assert TRAINED <= {*stopped["loaded"], *told["loaded"]}
    of_losses, of_weights = LIMITS[precision]
    theirs, ours = (logged(folder, name) for name in ("references", "kernels"))
    assert len(theirs) == STEPS and {line["kind"] for line in theirs} == {"pair", "image", "text"}
    for step, (expected, found) in enumerate(zip(theirs, ours, strict=True)):
        assert found.keys() == expected.keys() and found["kind"] == expected["kind"], step
        for key in expected.keys() - {"kind"}:
            off = abs(found[key] - expected[key])
            assert off <= of_losses * abs(expected[key]), (
                f"step {step}: {key} {found[key]}, not {expected[key]}"
            )
    references, finished = (torch.load(folder / f"{name}.pt") for name in ("references", "kernels"))
    before, after = references["before"], references["after"]
    assert _equal(begun["before"], before), "the runs begin at different weights"
    assert not _equal(begun["after"], before) and not _equal(finished["after"], begun["after"])
    way, apart = _distance(after, before), _distance(after, finished["after"])
    assert 0 < way and apart <= of_weights * way, f"the weights are {apart / way:.1e} of their way apart"
    print(f"weights {apart / way:.1e} of their way apart")


def check_going_on(folder: Path, device: str, precision: str) -> None:
    """Asserts, after `check`, that the run that went on is an uninterrupted one bit for bit."""
    assert run(folder, "triton", "uninterrupted", precision)["device"] == device
    assert logged(folder, "uninterrupted") == logged(folder, "kernels")
    one, other = (torch.load(folder / f"{name}.pt")["after"] for name in ("uninterrupted", "kernels"))
    assert _equal(one, other), "a run that goes on has other weights"


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    parts = [
        (one[name].double() - other[name].double()).norm() for name in one if one[name].is_floating_point()
    ]
    return float(torch.stack(parts).norm())


if __name__ == "__main__":
    train(Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]))
