"""What image encoders know of drawings in a style that they never saw: k-nearest-neighbour accuracy of runs
on the demo's data, beside the untrained network and raw pixels.

    python benchmarks/encoder_neighbours.py runs/demo_simclr runs/demo_full/joint runs/my_dino:dino.teacher

A name behind the colon takes that training state's running average in place of the weights. Writes
benchmarks/results/encoder_neighbours.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
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


def main() -> None:
    """Measures each run that the command line names."""
    rows, places = [], sys.argv[1:]
    first = configuration.load(Path(places[0].partition(":")[0]) / "config.json")
    inputs = build_inputs(first, unpack().root)
    test = inputs.styles_of(inputs.unseen_style)[STYLE]
    pixels = [pixel_vectors(samples.pixels(EDGE)) for samples in (inputs.train, test)]
    rows.append({"encoder": "raw pixels", **accuracies(inputs, test, *pixels)})
    untrained: dict[str, Tensor] = {}
    models = [("untrained", first, untrained, 0, 0.0)]
    for place in places:
        run, _, average = place.partition(":")
        config = configuration.load(Path(run) / "config.json")
        folder = latest(place_of(Path(run), config))
        if folder is None:
            raise CheckpointError(f"{run} has no checkpoint; train it first")
        weights = passed_on(folder, ("model.image_encoder.",), average or None)
        what = f"{config.name}{', ' + average if average else ''}"
        work = float(results(Path(run))["flops_with_targets"])
        models.append((what, config, weights, step_of(folder.name), work))
    for what, config, weights, steps, work in models:
        keys, _ = encoded(config, weights, inputs.train)
        queries, rank = encoded(config, weights, test)
        found = accuracies(inputs, test, keys, queries)
        rows.append({"encoder": what, "steps": steps, "flops": work, "effective_rank": rank, **found})
        print(rows[-1], flush=True)
    command = f"python benchmarks/encoder_neighbours.py {' '.join(places)}"
    OUT.write_text(json.dumps({"command": command, "style": STYLE, "k": K, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
