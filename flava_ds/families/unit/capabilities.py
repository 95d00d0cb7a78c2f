"""UniT's capabilities for evaluation: objects in images, and states to fine-tune on texts and pairs.

Shapes follow flava_ds/evaluation/protocols.py. Only states to fine-tune keep a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.families.bert.capabilities import types_of_texts
from flava_ds.families.offers import Tunable
from flava_ds.families.unit.config import TASKS
from flava_ds.families.unit.model import OF_IMAGES, Unit
from flava_ds.layers.boxes import to_corners
from flava_ds.layers.patches import enlarged_edge
from flava_ds.layers.words import pack
from flava_ds.objectives.detection import Detection
from flava_ds.training.task import Task

LACKS = {
    "ImageFeatures": "UniT's queries answer a task; no state stands for an image alone",
    "ImageStates": "UniT's queries answer a task; no state stands for an image alone",
    "TextFeatures": "UniT's queries answer a task; no state stands for a text alone",
    "Embedder": "UniT trains no space that images and texts share",
    "Matcher": "UniT has no task of matching images and texts",
    "Scorer": "UniT predicts labels, no masked words",
}
"""Capabilities that UniT lacks: protocol -> reason."""


def offers(module: Task, config: Any) -> tuple[tuple[object, ...], dict[str, str]]:
    """Returns the capabilities of a UniT with its objectives, and what it lacks: protocol -> reason."""
    model, sep_id = module.model, config.model.load_tokenizer(config).sep_id
    parts: list[object] = []
    lacks = dict(LACKS)
    pairs, texts = (
        [task for task, content in TASKS.items() if task in model.queries and content in contents]
        for contents in (("pair",), ("text", "pair"))
    )
    if pairs:
        parts.append(UnitPairs(model, sep_id, pairs[0]))
    else:
        lacks["PairStates"] = "the run trains on no task of images with texts"
    if texts:
        alone = [task for task in texts if TASKS[task] == "text"]
        parts.append(UnitTexts(model, sep_id, (alone or texts)[0]))
    else:
        lacks["TextStates"] = "the run trains on no task of texts"
    detections = [own for own in module.objectives.values() if isinstance(own, Detection)]
    if detections:
        parts.append(UnitObjects(model, detections[0]))
    else:
        lacks["ObjectFinder"] = "the run trains on no detection task"
    return tuple(parts), lacks


class UnitObjects:
    """The objects that a detection task finds."""

    def __init__(self, model: Unit, objective: Detection) -> None:
        self.model, self.objective = model, objective

    @property
    def num_classes(self) -> int:
        """Classes of objects."""
        return self.objective.config.num_classes

    @torch.inference_mode()
    def find_objects(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each query's box and its probability of each class: [b c H W] uint8 -> [b Q 4] x1 y1 x2 y2
        as shares of the edges, [b Q z]; both fp32.
        """
        task, size = self.objective.view, len(pixels)
        encoded = self.model.answer(task, pixels.to(self.model.decoder_norm.weight.device))
        rows = self.model.last_rows(task, size, encoded.packed.hidden.device)
        rows = (rows[:, None] + torch.arange(self.objective.config.num_queries, device=rows.device)).flatten()
        logits, boxes = self.objective.predict(encoded.rows(rows), size)
        return to_corners(boxes[0]).clamp(0, 1).float(), logits[0].softmax(-1)[..., :-1].float()


@dataclass(frozen=True)
class UnitTexts:
    """Gives copies of the model to fine-tune on texts."""

    model: Unit
    sep_id: int
    task: str

    def text_states(self) -> Tunable:
        """Returns a copy of the model; the model stays unchanged."""
        return tunable(self.model, self.sep_id, self.task, "text", self.model.config.image_size)


@dataclass(frozen=True)
class UnitPairs:
    """Gives copies of the model to fine-tune on pairs."""

    model: Unit
    sep_id: int
    task: str

    def pair_states(self, scale: float = 1.0) -> Tunable:
        """Returns a copy for images `scale` times as large, in whole patches; the model stays unchanged."""
        size = enlarged_edge(self.model.config.image, scale)
        return tunable(self.model, self.sep_id, self.task, "pair", size)


def tunable(model: Unit, sep_id: int, task: str, content: str, image_size: int) -> Tunable:
    """Returns a copy to fine-tune: the first query's state after the last layer, with the token and the
    queries of a task of the run. Parts that were frozen stay so.

    Source: Hu & Singh 2021, section 3.4.
    """
    model = copy.deepcopy(model)
    used = model.parameters_of(task, read_directly=True)
    if content == "text":
        used = {name for name in used if not name.startswith(OF_IMAGES)}
    still = tuple(f"image_tower.{name}." for name in model.image_tower.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in used and not name.startswith(still))

    def states(model: Unit, texts: Sequence[np.ndarray], images: Tensor | None) -> Tensor:
        device = model.decoder_norm.weight.device
        types = types_of_texts(texts, sep_id).to(device)
        encoded = model.answer(task, images, pack(texts, device), types)
        return encoded.rows(model.last_rows(task, len(texts), device))

    return Tunable(states, width=model.config.decoder.hidden_size, image_size=image_size, model=model)
