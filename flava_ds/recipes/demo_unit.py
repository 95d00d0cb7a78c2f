"""A small UniT on labelled scenes of the demo's drawings: boxes, questions, entailment."""

import dataclasses

from flava_ds.config import WHOLE, Config, SourceConfig
from flava_ds.config.data import SampleKind
from flava_ds.config.encoders import ConvStemConfig
from flava_ds.families.unit.config import PositionedConfig, UnitConfig
from flava_ds.objectives.classification import ClassificationConfig
from flava_ds.objectives.detection import DetectionConfig
from flava_ds.recipes.demo import INITIALIZER_RANGE, SCENES, demo_words, like_demo

CANVAS = 96
CLASSES, ANSWERS, FITS = 97, 21, 3
"""Subgroups of the training styles, answers to questions, and how a statement may fit; a test compares."""


def demo_unit() -> Config:
    """Returns a UniT on the demo's scenes for the same number of training FLOPs, half of the steps detection.

    Optimizer and vocabulary are the demo's. Published are frozen norms and weights from elsewhere; here the
    tower is trained from random weights, so its norms are ghost batch norms.
    """
    layers = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512}
    sources = {
        "detection": _source("image", "detection", seed=0, weight=0.5, max_targets=10),
        "question": _source("pair", "question", seed=1, weight=0.3),
        "entailment": _source("pair", "entailment", seed=2, weight=0.2),
    }
    config = like_demo(
        "demo_unit",
        model=UnitConfig(
            image=ConvStemConfig(image_size=CANVAS, width=16, blocks=(1, 1, 2), norm_momentum=0.9),
            encoder=PositionedConfig(hidden_size=128, **layers),
            text=demo_words(num_hidden_layers=2),
            decoder=PositionedConfig(
                hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=768
            ),
            first_word_only=(),  # small texts are read whole
            initializer_range=INITIALIZER_RANGE,
        ),
        objectives={
            "detection": DetectionConfig(num_classes=CLASSES, num_queries=10),
            "question": ClassificationConfig(task="question", num_classes=ANSWERS, num_queries=4),
            "entailment": ClassificationConfig(task="entailment", num_classes=FITS, num_queries=4),
        },
        sources=sources,
        # By Task.flops over 40 steps: 27.5 GFLOP per step (the demo: 24.9), both without the codebook.
        steps=541,
    )
    return dataclasses.replace(config, training=dataclasses.replace(config.training, global_batch_size=64))


def _source(kind: SampleKind, task: str, *, seed: int, weight: float, max_targets: int = 1) -> SourceConfig:
    """Returns a source of scenes, whose colours vary like those of the demo's pairs."""
    return SourceConfig(
        kind=kind,
        task=task,
        seed=seed,
        shards=str(SCENES),
        caption_key=None if kind == "image" else task,
        weight=weight,
        max_tokens=32,
        targets_key=f"{task}.safetensors",
        max_targets=max_targets,
        transform=dataclasses.replace(WHOLE, color_jitter=0.2, grayscale=0.2, edges=0.05),
    )
