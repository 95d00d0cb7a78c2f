"""What DINO keeps beside the student: its teacher, the centre of the teacher's outputs, and a watch over
collapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.layers.transformer import at_least_fp32
from flava_ds.objectives.state import EmaTeacher, TrainingState

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine

LEAST_RANK, LEAST_SHARE, MOST_ENTROPY = 2.0, 0.02, 0.98
"""Collapse: an effective rank below the first, at most this share of the prototypes used that so many crops
could use, or an entropy of single crops of at least this share of ln K."""
TRIALS = 10
"""Measurements before anything is said: to an untrained encoder all images look much the same."""


class Centre(TrainingState):
    """The running mean of the teacher's outputs over all views, or masked patches, micro-batches and ranks.

    Source: Caron et al. 2021, equation 4.
    """

    def __init__(
        self, prototypes: int, momentum: float, total: str = "outputs", count: str = "count"
    ) -> None:
        """`total` and `count` name the statistics whose quotient is an update's mean."""
        self.mean, self.momentum = torch.zeros(prototypes), momentum
        self.total, self.count = total, count

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def begin(self, name: str, engine: Engine) -> None:
        self.mean = self.mean.to(engine.world.device)

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        if self.total in statistics:
            count = statistics[self.count]
            moved = self.mean.lerp(statistics[self.total] / count.clamp(min=1), 1 - self.momentum)
            self.mean = torch.where(count > 0, moved, self.mean)


class DinoTeacher(EmaTeacher):
    """Encodes the global crops and adds their targets:

    Shapes:
        dino_outputs   [b a K]  fp32, of the head
        dino_targets   [b a K]  fp32, probabilities made of them
        dino_features  [b a d]  fp32, the CLS, L2-normalised

    and of the m patches that the student does not see, if some are masked for it:
        patch_outputs  [m K]    fp32
        patch_targets  [m K]    fp32
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        momentum: Callable[[int], float],
        targets: Callable[[Sequence[Batch], str], Sequence[Tensor]],
    ) -> None:
        """`targets` turns the outputs of a step's micro-batches, under the name given, into probabilities."""
        super().__init__(nn.ModuleDict({"encoder": encoder, "head": head}), "", momentum)
        self.encoder: Any = encoder
        self.head, self.targets = head, targets

    def begin(self, name: str, engine: Engine) -> None:
        objective = name.rpartition(".")[0]
        self.follows = {"encoder.": "model.image_encoder.", "head.": f"objectives.{objective}.head."}
        super().begin(name, engine)

    def complete(self, batch: Batch) -> Batch:
        if "global_crops" not in batch:
            return batch
        crops = batch["global_crops"]
        own: dict[str, Tensor] = {}
        if "crop_mask_rows" in batch:
            first, patches = self.encoder.tokens(crops.flatten(0, 1), batch["crop_mask_rows"])
            own["patch_outputs"] = self.head(patches)
        else:
            first = self.encoder.first_tokens(crops.flatten(0, 1))
        outputs = self.head(first).unflatten(0, crops.shape[:2])
        features = F.normalize(at_least_fp32(first), dim=-1).unflatten(0, crops.shape[:2])
        return batch.having(dino_outputs=outputs, dino_features=features, **own)

    def complete_step(self, batches: list[Batch]) -> list[Batch]:
        if "dino_outputs" not in batches[0]:
            return batches
        for outputs, name in (("dino_outputs", "dino_targets"), ("patch_outputs", "patch_targets")):
            if outputs in batches[0]:
                made = self.targets(batches, outputs)
                batches = [batch.having(**{name: own}) for batch, own in zip(batches, made, strict=True)]
        return batches


class CollapseWatch(TrainingState):
    """Measures, every few steps, over the global crops of a step:

    used_prototypes  how many are some crop's likeliest
    batch_entropy    of the mean of the teacher's probabilities, in nats: ln K where all are used equally
    spread           standard deviation of the L2-normalised CLS over crops, mean over dimensions, times
                     sqrt(d): 1 where features fill the sphere, 0 where all are one
    effective_rank   exp of the entropy of the normalised eigenvalues of the features' covariance

    `numbers` holds these four, the mean entropy of single crops, how many crops there were, and how often it
    has measured.
    """

    names = ("used_prototypes", "batch_entropy", "spread", "effective_rank")

    def __init__(self, prototypes: int) -> None:
        self.prototypes = prototypes
        self.numbers = torch.cat([torch.full((6,), torch.nan), torch.zeros(1)])

    def tensors(self) -> dict[str, Tensor]:
        return {"numbers": self.numbers}

    def begin(self, name: str, engine: Engine) -> None:
        self.numbers = self.numbers.to(engine.world.device)

    def after_update(self, step: int, engine: Engine, statistics: Mapping[str, Tensor]) -> None:
        if "products" in statistics:
            self.numbers = torch.cat([measure(statistics), self.numbers[-1:] + 1])

    def report(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.numbers, strict=False))

    def complaint(self, numbers: Mapping[str, float]) -> str | None:
        """Tells both ways to collapse apart, with what helps."""
        if self.numbers[-1] < TRIALS:
            return None
        used, entropy, spread, rank = (numbers[name] for name in self.names)
        single, crops = self.numbers[4:6].tolist()
        most, reachable = math.log(self.prototypes), min(self.prototypes, crops)
        told = (
            f"teacher entropy {single:.2f} of {most:.2f} nats, that of its mean {entropy:.2f}, {used:.0f} of "
            f"{self.prototypes} prototypes used, spread {spread:.2f}, effective rank {rank:.1f}"
        )
        if single >= MOST_ENTROPY * most:
            return f"the teacher says nothing of any image ({told}); lower teacher_temperature"
        if used <= max(1, LEAST_SHARE * reachable) or rank < LEAST_RANK:
            return f"the teacher says the same of every image ({told}); lower the learning rate"
        return None


def measure(statistics: Mapping[str, Tensor]) -> Tensor:
    """Computes the watch's numbers from sums over crops: the four by their names, the mean entropy of single
    crops, and how many crops there were: [6] fp32.

    Shapes:
        statistics  probabilities [K], likeliest [K], features [d], products [d d]; entropy, crops: scalars
    """
    crops = statistics["crops"].double()
    mean = statistics["probabilities"].double() / crops
    entropy = -torch.xlogy(mean, mean).sum()
    centre = statistics["features"].double() / crops
    covariance = statistics["products"].double() / crops - torch.outer(centre, centre)
    variances = covariance.diagonal().clamp(min=0)
    spread = variances.sqrt().mean() * math.sqrt(len(variances))
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    shares = values / values.sum().clamp(min=1e-30)
    rank = (-torch.xlogy(shares, shares).sum()).exp()
    used = (statistics["likeliest"] > 0.5).sum()
    return torch.stack([used.double(), entropy, spread, rank, statistics["entropy"] / crops, crops]).float()
