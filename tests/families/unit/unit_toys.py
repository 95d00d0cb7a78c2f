"""A small UniT and batches for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from flava_ds.batch import Batch
from flava_ds.config import WHOLE, Config, DataConfig, SourceConfig
from flava_ds.config.encoders import BertTextConfig, ConvStemConfig
from flava_ds.data.collate import pack
from flava_ds.data.plan import BatchPlan, Draft
from flava_ds.data.targets import PackedTargets
from flava_ds.families.unit.config import TASKS, PositionedConfig, UnitConfig
from flava_ds.objectives.classification import ClassificationConfig
from flava_ds.objectives.detection import DetectionConfig

CLS, SEP = 101, 102
CLASSES, ANSWERS, QUERIES, ATTRIBUTES = 5, 7, 4, 6
OBJECTIVES = {
    "detection": DetectionConfig(num_classes=CLASSES, num_queries=QUERIES),
    "question": ClassificationConfig(task="question", num_classes=ANSWERS, num_queries=2, loss="binary"),
    "entailment": ClassificationConfig(task="entailment", num_classes=3, num_queries=2),
    "sst2": ClassificationConfig(task="sst2", num_classes=2, num_queries=2),
}


def tiny_model(**changed) -> UnitConfig:
    """Two layers each, 2 x 2 cells of 8 pixels, heads of 8 and 6, 200 words."""
    model = UnitConfig(
        image=ConvStemConfig(image_size=16, width=4, blocks=(1, 1), norm_group=2),
        encoder=PositionedConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20
        ),
        text=BertTextConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            vocab_size=200,
            max_position_embeddings=32,
        ),
        decoder=PositionedConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
        ),
    )
    return dataclasses.replace(model, **changed)


def tiny_config(**changed) -> Config:
    sources = {task: source_of(task) for task in OBJECTIVES}
    return Config(
        **{
            "name": "tiny",
            "model": tiny_model(),
            "objectives": OBJECTIVES,
            "data": DataConfig(sources=sources),
        }
        | changed
    )


def source_of(task: str, **changed) -> SourceConfig:
    """A source of a task, four samples a step."""
    own = SourceConfig(
        kind=TASKS[task],
        task=task,
        shards="none",
        max_tokens=16,
        targets_key="targets.safetensors",
        max_targets={"detection": QUERIES, "question": 3}.get(task, 1),
        transform=WHOLE,
        global_batch_size=4,
    )
    return dataclasses.replace(own, **changed)


def targets_of(task: str, counts, draw: np.random.Generator) -> PackedTargets:
    """Random labels: objects of images, with attributes, right answers, or one class."""
    total = sum(counts)
    classes = {"detection": CLASSES, "question": ANSWERS, "entailment": 3}.get(task, 2)
    corners = np.sort(draw.integers(0, 100, (total, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 5], axis=1) / 105
    attributes = np.where(draw.random((total, 1)) < 0.3, -1, draw.integers(-1, ATTRIBUTES, (total, 3)))
    labels = np.concatenate([draw.permutation(classes)[:count] for count in counts] or [[]])
    return PackedTargets(
        labels=labels.astype(np.int64),
        boxes=boxes.astype(np.float32) if task == "detection" else None,
        scores=draw.random(total).astype(np.float32) if task == "question" else np.ones(total, np.float32),
        lengths=np.array(counts, dtype=np.int64),
        attributes=attributes if task == "detection" else None,
    )


def make_batch(task: str, counts=None, lengths=(5, 12, 3, 9), seed: int = 0) -> Batch:
    """A batch of a task as the collator makes it; `counts` are the labels of each sample."""
    draw, size = np.random.default_rng(seed), len(lengths)
    content, views = TASKS[task], {}
    if counts is None:
        counts = {"detection": (2, 0, 4, 1), "question": (1, 3, 2, 1)}.get(task, (1,) * size)
    if content != "text":
        pixels = draw.integers(0, 256, (size, 3, 16, 16), dtype=np.uint8)
        views = {"pixel_values": torch.from_numpy(pixels)}
    texts = None
    if content != "image":
        texts = np.concatenate([[CLS, *draw.integers(104, 200, n - 2), SEP] for n in lengths])
    draft = Draft(
        seeds=np.arange(size, dtype=np.uint64),
        matched=np.ones(size, dtype=bool),
        views=views,
        input_ids=texts,
        lengths=None if texts is None else np.array(lengths),
        targets=targets_of(task, counts, draw),
    )
    tensors, numbers = pack(BatchPlan(kind=task), draft)
    return Batch(kind=task, source=task, size=size, tensors=tensors, numbers=numbers)
