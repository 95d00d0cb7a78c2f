"""A stranger's evaluation with its data set: which of two pictures is the other's neighbour, measured while
FLAVA trains and afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from stranger_runs import STEPS, prove, split, stranger_config

from flava_ds.config import EvaluationConfig
from flava_ds.errors import DataError
from flava_ds.evaluation import registry
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import LabelledImages, Seen
from flava_ds.evaluation.opening import open_model
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM
from flava_ds.evaluation.protocols import ImageFeatures, Score, Splits
from flava_ds.evaluation.runner import evaluate, find_all
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig


@dataclass(frozen=True)
class Patterns:
    """Pictures and their classes, as two arrays of one file per split."""

    name: str = "patterns"
    folder: str = "patterns"
    licence: str = "none, it is drawn"
    origin: str = "drawn by the test"
    layout: str = "SPLIT.npz with `pictures` [N 3 S S] uint8 and `classes` [N]"
    splits: tuple[str, ...] = ("test",)

    def is_here(self, folder: Path, split: str | None = None) -> bool:
        return any((folder / f"{name}.npz").is_file() for name in ([split] if split else self.splits))

    def read(self, folder: Path, split: str) -> LabelledImages:
        try:
            arrays = np.load(folder / f"{split}.npz")
            pictures, classes = torch.from_numpy(arrays["pictures"]), arrays["classes"]
        except (OSError, KeyError) as error:
            raise DataError(f"{folder / split}.npz: {error}; it holds {self.layout}") from error
        keys = tuple(str(row) for row in range(len(classes)))
        return LabelledImages(
            self.name,
            keys,
            pictures.__getitem__,
            classes,
            tuple(f"class {c}" for c in range(classes.max() + 1)),
        )


@dataclass(frozen=True)
class Twins:
    """Share of the pictures whose nearest other one is of their class, and how much nearer their class is on
    the whole.
    """

    name: str = "twins"
    data: Patterns = Patterns()
    about: ClassVar[str] = "the nearest other picture"
    needs: ClassVar[tuple[type, ...]] = (ImageFeatures,)

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        pictures = data.test()
        features = model.image_features(Seen(pictures, CLIP_TRANSFORM), f"task {self.name}").float()
        away = torch.cdist(features, features).cpu()
        same = torch.from_numpy(pictures.labels[:, None] == pictures.labels)
        margin = float(away[~same].mean() - away[same].mean())
        nearest = away.fill_diagonal_(torch.inf).argmin(1).numpy()
        hits = pictures.labels[nearest] == pictures.labels
        return {
            "found": Score(float(hits.mean()), len(hits), None),
            "margin": Score(margin, len(hits), None, unit="number"),
        }


TASKS = (Twins(),)


def draw(folder: Path) -> None:
    """Writes twelve pictures of four classes."""
    rng = np.random.default_rng(0)
    classes = np.arange(12) % 4
    patterns = rng.integers(0, 256, (4, 3, 16, 16))
    noisy = patterns[classes] + rng.integers(-40, 41, (12, 3, 16, 16))
    folder.mkdir()
    np.savez(folder / "test.npz", pictures=noisy.clip(0, 255).astype(np.uint8), classes=classes)


@pytest.mark.distributed
@pytest.mark.slow
def test_an_evaluation_while_training_and_of_the_checkpoint(run_ranks, tmp_path):
    draw(tmp_path / "patterns")
    every = EvaluationConfig(every_steps=2, tasks=(__file__,), data_root=str(tmp_path))
    config = stranger_config(
        tmp_path, name="eval", evaluation=every, objectives={"pairs": GlobalContrastiveConfig()}
    )
    curve = prove(run_ranks, config)
    live = [line for line in curve if "evaluation/twins/found" in line]
    assert [line["step"] for line in live] == [1, 3, STEPS - 1], "every two steps, and after the last"
    assert len({line["evaluation/twins/margin"] for line in live}) == 3 and all(
        line["evaluation/twins/margin"] > 0 for line in live
    )
    (task,) = registry.find([__file__])
    for name in ("alone_1", "zero3_whole"):
        opened = open_model(split(config, name, "zero1", 1).run_path, device="cpu")
        scores = evaluate([task], opened.frozen(), find_all([task], tmp_path))["twins"].scores
        assert scores["found"].value == live[-1]["evaluation/twins/found"] and scores["found"].n == 12
        assert scores["margin"].value == pytest.approx(live[-1]["evaluation/twins/margin"], rel=1e-5)
    with pytest.raises(DataError, match=r"train\.npz: .*it holds SPLIT\.npz"):
        Patterns().read(tmp_path / "patterns", "train")


def test_a_distance_is_not_shown_in_per_cent(tmp_path):
    class Colours:
        def image_features(self, seen: Seen, asked_by: str) -> torch.Tensor:
            return torch.stack([seen.images.load(row) for row in range(12)]).float().mean((2, 3))

    class Drawn:
        def test(self) -> LabelledImages:
            return Patterns().read(tmp_path / "patterns", "test")

    draw(tmp_path / "patterns")
    scores = Twins().run(Colours(), Drawn())
    assert str(scores["margin"]) == f"{scores['margin'].value:.4f}" and str(scores["found"]).endswith(" %")
