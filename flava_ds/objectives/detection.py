"""Detection as set prediction: each object in an image is matched with one query's class and box (DETR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config.bounds import AtLeast, AtMost
from flava_ds.config.objectives import ObjectiveConfig
from flava_ds.errors import ConfigError
from flava_ds.layers.boxes import generalized_iou, to_centres, to_corners
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.base import Loss, Objective
from flava_ds.objectives.set_matching import MatchCosts, Objects, match

UNIT = 1000
"""Terms are counted in thousandths, because counts are integers and the weight of "none" is a share."""
CLASS_WIDTH, ATTRIBUTE_WIDTH = 256, 512
"""Of the head of attributes: of an object's class, and of its hidden layer."""
Factor = Annotated[float, AtLeast(0), AtMost(1000)]


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(ObjectiveConfig, type="detection"):
    """Classes and boxes of the objects in an image, after every layer of a decoder of queries."""

    task: str = "detection"
    """The task whose samples it reads, which is the kind of its steps."""
    num_classes: Annotated[int, AtLeast(1), AtMost(2**24)] = 91
    """Classes of objects; queries without an object have one more."""
    num_queries: Annotated[int, AtLeast(1), AtMost(10_000)] = 100
    """Objects that an image may have, or more."""
    none_weight: Annotated[float, AtLeast(0), AtMost(0.999)] = 0.1
    """Weight of a query without an object in the cross-entropy."""
    distance_weight: Factor = 5.0
    """Of the L1 distance of boxes, in the loss and in the cost of a match."""
    overlap_weight: Factor = 2.0
    """Of 1 - GIoU, alike."""
    num_attributes: Annotated[int, AtLeast(0), AtMost(2**16)] = 0
    """Classes of attributes, such as colours, of which an object may have several; 0 reads none."""
    max_attributes: Annotated[int, AtLeast(1), AtMost(1000)] = 16
    """Attributes of an object, or fewer."""
    attribute_weight: Factor = 1.0
    """Of the cross-entropy of attributes, in the loss alone."""

    targets: ClassVar[Literal["labels", "boxes"] | None] = "boxes"
    title: ClassVar[str] = "Detection"

    @property
    def kinds(self) -> frozenset[str]:  # type: ignore[override]  # each task is a kind of its own
        """The kind of its steps."""
        return frozenset({self.task})

    def build(self, config: Any) -> Detection:
        config.model.check_view(self.task)
        return Detection(self, config.model.shape_of(self.task))

    def check(self, where: str, config: Any) -> None:
        config.model.check_view(self.task, where)
        if abs(UNIT * self.none_weight - round(UNIT * self.none_weight)) > 1e-9:
            raise ConfigError(
                f"{where}.none_weight is {self.none_weight:g}, but terms are counted in thousandths; use "
                f"{round(self.none_weight, 3):g}"
            )
        for name, source in config.data.sources.items():
            if source.step_kind == self.task and source.max_targets > self.num_queries:
                raise ConfigError(
                    f"{where}.num_queries is {self.num_queries}, but an image of source '{name}' may have "
                    f"{source.max_targets} objects; set --data.sources.{name}.max-targets "
                    f"{self.num_queries}, or raise num_queries"
                )


class BoxHead(nn.Module):
    """Three layers that place a box: centre x, centre y, width, height, as shares. [k d] -> [k 4]."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.first = nn.Linear(hidden_size, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.last = nn.Linear(hidden_size, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        placed = self.last(self.second(self.first(hidden).relu()).relu())
        return at_least_fp32(placed).sigmoid()


class AttributeHead(nn.Module):
    """Tells attributes of objects whose classes are known: two linear layers, and ReLU on the scores.

    Shapes:
        hidden   [k d]
        labels   [k]    int64
        returns  [k a]
    Source: Anderson et al. 2018, section 3.1, as in the code of Hu & Singh 2021.
    """

    def __init__(self, hidden_size: int, num_classes: int, num_attributes: int):
        super().__init__()
        self.classes = nn.Embedding(num_classes + 1, CLASS_WIDTH)
        self.first = nn.Linear(hidden_size + CLASS_WIDTH, ATTRIBUTE_WIDTH)
        self.last = nn.Linear(ATTRIBUTE_WIDTH, num_attributes)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        known = torch.cat([hidden, self.classes(labels).to(hidden.dtype)], dim=1)
        return at_least_fp32(self.last(self.first(known))).relu()


class Detection(Objective):
    """Weighted cross-entropy of the queries' classes, and L1 and GIoU of the boxes that are matched.

    The sum over layers of: the cross-entropy, divided by the sum of its weights, and the loss of boxes,
    divided by the number of objects, both over all ranks and micro-batches. The loss of boxes has that of
    attributes in it: the mean cross-entropy over those of each object. Terms are the weights of queries
    in thousandths. How many of them the step has says `step_terms` in the batch, for as many images as its
    number `step_samples` says; without them, the batch is the step. Metrics are means over objects: whether
    the likeliest class, "none" aside, is right, and the GIoU.

    Source: Carion et al. 2020, section 3.1 and its code.
    """

    metrics: ClassVar[Mapping[str, str]] = {"correct": "accuracy", "giou": "giou"}

    def __init__(self, config: DetectionConfig, shape: Any):
        super().__init__(config.weight)
        self.kinds, self.view, self.needs = config.kinds, config.task, config.kinds
        self.config, self.layers = config, shape.num_hidden_layers
        self.none = round(UNIT * config.none_weight)
        self.costs = MatchCosts(distance=config.distance_weight, overlap=config.overlap_weight)
        self.classes = nn.Linear(shape.hidden_size, config.num_classes + 1)
        self.boxes = BoxHead(shape.hidden_size)
        self.attributes = None
        if config.num_attributes:
            self.attributes = AttributeHead(shape.hidden_size, config.num_classes, config.num_attributes)
            self.metrics = {**Detection.metrics, "attributes": "attribute_loss"}  # type: ignore[misc]

    def count(self, batch: Batch) -> int:
        objects = batch["target_labels"].shape[0]
        return UNIT * objects + self.none * (batch.size * self.config.num_queries - objects)

    def reads(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        rows = self.layers * batch.size * self.config.num_queries
        return {self.view: torch.arange(rows, device=batch["target_labels"].device)}

    def forward(self, model: Any, hidden: Mapping[str, Tensor], batch: Batch) -> Loss:
        states = hidden[self.view]
        logits, boxes = self.predict(states, batch.size)
        objects = Objects(
            batch["target_labels"],
            batch["target_boxes"],
            batch["target_cu_seqlens"],
            batch.numbers["target_max_seqlen"],
        )
        rows, own = match(logits, boxes, objects, self.costs)
        terms, number = self.step_terms(batch)
        labels = torch.full(logits.shape[:3], self.config.num_classes, device=logits.device).flatten()
        labels = labels.index_copy(0, rows, objects.labels[own])
        weights = logits.new_ones(self.config.num_classes + 1)
        weights[-1] = self.none / UNIT
        right = F.cross_entropy(logits.flatten(0, 2), labels, weights, reduction="sum")
        placed, truths = boxes.flatten(0, 2)[rows], objects.boxes[own].to(boxes.dtype)
        near = generalized_iou(to_corners(placed), truths)
        far = (placed - to_centres(truths)).abs().sum()
        matched = self.config.distance_weight * far + self.config.overlap_weight * (1 - near).sum()
        share, metrics = terms / number, {}
        if self.attributes is not None:
            described = self.attributes(states.index_select(0, rows), objects.labels[own])
            of_attributes = attribute_losses(described, batch["target_attributes"][own]).sum()
            matched = matched + self.config.attribute_weight * of_attributes
            metrics["attributes"] = share * of_attributes.detach() / self.layers
        with torch.no_grad():
            correct = logits.flatten(0, 2)[rows, :-1].argmax(-1) == objects.labels[own]
            metrics["correct"] = share * correct.sum() / self.layers
            metrics["giou"] = share * near.sum() / self.layers
        return Loss(UNIT * right + share * matched, self.count(batch), metrics)

    def predict(self, hidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Returns classes' scores and boxes of all layers' queries: [L*b*Q d] -> [L b Q z+1], [L b Q 4]."""
        shape = (-1, size, self.config.num_queries)
        return at_least_fp32(self.classes(hidden)).unflatten(0, shape), self.boxes(hidden).unflatten(0, shape)

    def step_terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the terms and the objects of the step, at least one object."""
        terms, samples = batch.get("step_terms"), batch.size
        if terms is None:
            terms = torch.full((), float(self.count(batch)), device=batch["target_labels"].device)
        else:
            samples = batch.numbers["step_samples"]
        empty = self.none * samples * self.config.num_queries
        return terms, ((terms - empty) / (UNIT - self.none)).clamp(min=1)

    def flops(self, model: Any, batch: Batch) -> float:
        rows = self.layers * batch.size * self.config.num_queries
        heads = (self.classes, self.boxes.first, self.boxes.second, self.boxes.last)
        work = 2.0 * rows * sum(layer.weight.numel() for layer in heads)
        if self.attributes is not None:
            weights = self.attributes.first.weight.numel() + self.attributes.last.weight.numel()
            work += 2.0 * self.layers * batch["target_labels"].shape[0] * weights
        return work


def attribute_losses(logits: Tensor, attributes: Tensor) -> Tensor:
    """Returns the mean cross-entropy over the attributes of each object, 0 of those without: [k].

    Shapes:
        logits      [k a]
        attributes  [k w]  int64, -1 for none
    """
    has = attributes >= 0
    found = torch.gather(logits.log_softmax(1), 1, attributes.clamp(min=0))
    return -(found * has).sum(1) / has.sum(1).clamp(min=1)
