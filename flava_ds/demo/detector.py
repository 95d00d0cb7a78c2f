"""The demo's own detector: its training pictures, how good it is, and how the committed one was made.

    python -m flava_ds.demo.detector --out flava_ds/demo/detector.safetensors

It learns boxes and subgroups of scenes of the training styles, so models that use its regions have seen these
labels, too, as those of published detectors are Visual Genome's.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flava_ds.config import ImageTransformConfig
from flava_ds.data.colors import apply_colors, draw_colors
from flava_ds.demo.dataset import unpack
from flava_ds.demo.scene_labels import objects_of
from flava_ds.demo.scenes import CANVAS, Drawings, draw_scene, paint, read_drawings
from flava_ds.errors import CheckpointError
from flava_ds.regions.average_precision import Boxes, mean_average_precision, without_classes
from flava_ds.regions.detector import Detector, DetectorConfig, load_detector, save_detector
from flava_ds.regions.training import DetectorTrainingConfig, Truths, train_detector
from flava_ds.storage.atomic import write_json

ALONE_EVERY = 4
"""Every fourth training picture is a drawing alone, as the pairs' pictures are."""
ALONE = {"counts": (1, 1), "edges": (CANVAS // 2, CANVAS)}
CROWDED = {"counts": (3, 5)}
"""The others have more drawings than scenes, so that a step teaches more."""
COLOURS = ImageTransformConfig(color_jitter=0.3, grayscale=0.25, edges=0.12)
"""Held-out styles differ in colour and outline."""
TRAINING = DetectorTrainingConfig()
EVALUATION_SEED = 1
EVALUATED = 1000
"""Scenes of a split that the average precision is of."""
LOG_EVERY = 250


def configuration(drawings: Drawings) -> DetectorConfig:
    """Returns the configuration of a detector for the drawings' subgroups."""
    return DetectorConfig(class_names=tuple(sorted(set(drawings.subgroups))), image_size=CANVAS)


def truths_of(drawings: Drawings, class_names: tuple[str, ...], seed: int, rows: range, **how: Any) -> Truths:
    """Paints scenes; `how` goes to `draw_scene`. Drawings of other classes have label -1."""
    scenes = [draw_scene(drawings, seed, row, **how) for row in rows]
    boxes, labels = zip(*(objects_of(drawings, scene, class_names) for scene in scenes), strict=True)
    return Truths(
        pixels=torch.stack([paint(drawings, scene) for scene in scenes]),
        boxes=torch.from_numpy(np.concatenate(boxes)),
        labels=torch.from_numpy(np.concatenate(labels)),
        images=torch.repeat_interleave(torch.tensor([len(scene) for scene in scenes])),
    )


def training_batch(
    drawings: Drawings, class_names: tuple[str, ...], seed: int, step: int, size: int
) -> Truths:
    """Returns the pictures of a step, in varied colours."""
    alone = size // ALONE_EVERY
    first = range(step * (size - alone), (step + 1) * (size - alone))
    second = range(step * alone, (step + 1) * alone)
    parts = [truths_of(drawings, class_names, seed, first, **CROWDED)]
    if alone:
        parts.append(truths_of(drawings, class_names, seed, second, **ALONE))
    counts = np.cumsum([0, *(len(part.pixels) for part in parts)])
    pixels = torch.cat([part.pixels for part in parts]).float()
    draw = draw_colors(np.arange(step * size, (step + 1) * size, dtype=np.uint64), COLOURS)
    return Truths(
        pixels=(pixels if draw is None else apply_colors(pixels, draw)).clamp(0, 255).to(torch.uint8),
        boxes=torch.cat([part.boxes for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        images=torch.cat([part.images + count for part, count in zip(parts, counts, strict=False)]),
    )


def judged(detector: Detector, drawings: Drawings, count: int, **how: Any) -> dict[str, float]:
    """Returns the average precision at half overlap on scenes: the mean over classes, and of places alone."""
    found, truths = [], []
    for start in range(0, count, 100):
        part = truths_of(
            drawings,
            detector.class_names,
            EVALUATION_SEED,
            range(start, min(start + 100, count)),
            **how,
        )
        regions = detector(part.pixels)
        images = torch.repeat_interleave(regions.cu_seqlens.diff())
        scores, labels = regions.classes.max(1)
        kept = scores > 0
        found.append((regions.boxes[kept], labels[kept], images[kept] + start, scores[kept]))
        truths.append((part.boxes, part.labels, part.images + start, torch.ones(len(part.labels))))
    ours, theirs = (
        Boxes(*(torch.cat(column).double().numpy() for column in zip(*rows, strict=True)))
        for rows in (found, truths)
    )
    return {
        "ap50": round(mean_average_precision(ours, theirs), 4),
        "ap50_places": round(mean_average_precision(without_classes(ours), without_classes(theirs)), 4),
    }


def quality(detector: Detector, root: Path, count: int = EVALUATED) -> dict[str, dict[str, float]]:
    """Judges a detector on each split: scenes, and drawings alone."""
    found = {}
    for split in ("train", "unseen_style", "unseen_concepts"):
        drawings = read_drawings(root, split)
        found[f"{split}, scenes"] = judged(detector, drawings, count)
        found[f"{split}, alone"] = judged(detector, drawings, count, **ALONE)
    return found


def train(
    root: Path,
    out: Path,
    training: DetectorTrainingConfig = TRAINING,
    *,
    evaluated: int = EVALUATED,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains a detector like the committed one, and writes it to `out` with a JSON of how it was made.

    Raises: CheckpointError if `out` exists or cannot be written.
    """
    if out.suffix != ".safetensors" or out.exists():
        raise CheckpointError(f"{out}: give a new file whose name ends in .safetensors")
    drawings, begun = read_drawings(root, "train"), time.monotonic()
    config, curve = configuration(drawings), []

    def on_step(step: int, losses: dict[str, float]) -> None:
        if (step + 1) % LOG_EVERY == 0 or step + 1 == training.total_steps:
            curve.append({"step": step + 1, **{name: round(loss, 4) for name, loss in losses.items()}})
            tell(f"{curve[-1]}, {time.monotonic() - begun:.0f} s")

    detector = train_detector(
        config,
        training,
        lambda step: training_batch(drawings, config.class_names, training.seed, step, training.batch_size),
        on_step,
    )
    seconds = time.monotonic() - begun
    save_detector(detector, out)
    found = quality(load_detector(out), root, evaluated)
    summary = {
        "command": "python -m flava_ds.demo.detector --out flava_ds/demo/detector.safetensors",
        "licence": "Apache-2.0, as the code; what it learned from is named in ATTRIBUTION.md",
        "quality": found,
        "evaluated_scenes": evaluated,
        "curve": curve,
        "seconds": round(seconds),
        "training": dataclasses.asdict(training),
        "detector": dataclasses.asdict(config),
    }
    for name, numbers in found.items():
        tell(f"{name}: AP50 {100 * numbers['ap50']:.1f} %, places {100 * numbers['ap50_places']:.1f} %")
    write_json(out.with_suffix(".json"), summary)
    return summary


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(
        description="Trains the demo's detector on scenes of the training styles."
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--steps", type=int, default=TRAINING.total_steps, help="updates (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, help="the demo's data set (default: unpacked in the user's cache)"
    )
    arguments = parser.parse_args()
    root = unpack() if arguments.data is None else arguments.data
    train(root, arguments.out, dataclasses.replace(TRAINING, total_steps=arguments.steps))


if __name__ == "__main__":
    main()
