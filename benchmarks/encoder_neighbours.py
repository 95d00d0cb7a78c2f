"""What image encoders know of drawings in a style that they never saw: k-nearest-neighbour accuracy of runs
on the demo's data, beside the untrained network and raw pixels.

    python benchmarks/encoder_neighbours.py runs/demo_simclr runs/demo_full/joint runs/my_dino:dino.teacher

A name behind the colon takes that training state's running average in place of the weights. Runs NAME, NAME-1
and NAME-2 with the seeds 0, 1 and 2 are one row. Writes benchmarks/results/encoder_neighbours.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scripts import parser_of
from torch import Tensor

from flava_ds import config as configuration
from flava_ds.checkpoints.files import latest, place_of, step_of
from flava_ds.checkpoints.inheritance import passed_on
from flava_ds.config import Config
from flava_ds.demo.dataset import unpack
from flava_ds.demo.evaluation.inputs import Inputs, build_inputs
from flava_ds.errors import CheckpointError
from flava_ds.evaluation.neighbours import vote
from flava_ds.evaluation.pixels import EDGE, pixel_vectors
from flava_ds.evaluation.samples import Samples
from flava_ds.scaling.results import results

OUT = Path(__file__).parent / "results" / "encoder_neighbours.json"
STYLE, FIELDS, K = "fluent-emoji-flat", ("group", "subgroup"), 20


def accuracies(inputs: Inputs, test: Samples, keys: Tensor, queries: Tensor) -> dict[str, float]:
    """Returns the share of test images whose neighbours vote for the right class, by field."""
    found = {}
    for field in FIELDS:
        names = sorted(set(inputs.train.column(field)) | set(test.column(field)))
        train, right = (
            torch.tensor([names.index(name) for name in samples.column(field)])
            for samples in (inputs.train, test)
        )
        found[field] = float((vote(queries, keys, train, K, len(names)) == right).float().mean())
    return found


@torch.no_grad()
def encoded(config: Config, weights: dict[str, Tensor], samples: Samples) -> tuple[Tensor, float]:
    """Returns the L2-normalised CLS of a set's images, and the effective rank of their covariance."""
    task = config.model.build(config).eval()
    task.load_state_dict(weights, strict=False)
    pixels = samples.pixels(config.model.image_size)
    first = torch.cat([task.model.image_encoder.first_tokens(rows) for rows in pixels.split(256)])
    shares = torch.linalg.svdvals((first - first.mean(0)).double()).square()
    shares = shares / shares.sum()
    return F.normalize(first, dim=1), float((-torch.xlogy(shares, shares).sum()).exp())


@dataclass(frozen=True)
class Encoder:
    """One image encoder to measure."""

    name: str
    """The same for all seeds."""
    config: Config
    weights: dict[str, Tensor]
    steps: int
    flops: float


def of_run(place: str) -> list[Encoder]:
    """Returns a run's encoder, or its average, and the one that it began with. Raises: CheckpointError."""
    run, _, average = place.partition(":")
    config = configuration.load(Path(run) / "config.json")
    folder = latest(place_of(Path(run), config))
    if folder is None:
        raise CheckpointError(f"{run} has no checkpoint; train it first")
    weights = passed_on(folder, ("model.image_encoder.",), average or None)
    name = config.name.removesuffix(f"-{config.seed}") + (f", {average}" if average else "")
    work = float(results(Path(run))["flops_with_targets"])
    trained = Encoder(name, config, weights, step_of(folder.name), work)
    return [Encoder("untrained", config, {}, 0, 0.0), trained]


def main() -> None:
    """Measures each run that the command line names; those of other seeds are one row."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN[:STATE]")
    places = parser.parse_args().runs
    first = configuration.load(Path(places[0].partition(":")[0]) / "config.json")
    inputs = build_inputs(first, unpack())
    test = inputs.styles_of(inputs.unseen_style)[STYLE]
    pixels = [pixel_vectors(samples.pixels(EDGE)) for samples in (inputs.train, test)]
    rows: dict[str, dict[str, Any]] = {
        "raw pixels": {"encoder": "raw pixels", "seeds": {"": accuracies(inputs, test, *pixels)}}
    }
    for encoder in (each for place in places for each in of_run(place)):
        row = rows.setdefault(
            encoder.name,
            {"encoder": encoder.name, "steps": encoder.steps, "flops": encoder.flops, "seeds": {}},
        )
        if (seed := str(encoder.config.seed)) in row["seeds"]:  # the same start of two runs
            continue
        keys, _ = encoded(encoder.config, encoder.weights, inputs.train)
        queries, rank = encoded(encoder.config, encoder.weights, test)
        row["seeds"][seed] = {"effective_rank": rank, **accuracies(inputs, test, keys, queries)}
        print(encoder.name, seed, row["seeds"][seed], flush=True)
    command = f"python benchmarks/encoder_neighbours.py {' '.join(places)}"
    found = {"command": command, "style": STYLE, "k": K, "rows": list(rows.values())}
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
