"""Trains a head and the encoder below it, and resumes after an interruption.

Everything random is a function of the update, so an interrupted training ends with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from flava_ds.config import ImageTransformConfig
from flava_ds.data.order import sample_seed, source_seed
from flava_ds.data.regions import SampleRegions
from flava_ds.data.stored_regions import StoredRegions
from flava_ds.data.transforms import ImageTransform
from flava_ds.data.two_segments import joined
from flava_ds.errors import DataError, UserError, first_of
from flava_ds.evaluation.frozen_model import FrozenModel, ahead
from flava_ds.evaluation.labelled import LabelledImages, LabelledPairs, LabelledTexts, Seen
from flava_ds.evaluation.shares import Share
from flava_ds.evaluation.tuning.goals import Goal
from flava_ds.evaluation.tuning.kept import IMAGES, IMAGES_WITH_TEXT, TRANSFORMS
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.evaluation.tuning.saved import Progress, Saved

SAVED_EVERY_S = 300
"""Seconds between two saves: the training time that an interruption can cost."""


@dataclass(frozen=True)
class StoredPictures:
    """The images of a set as the regions that a detector found in them before."""

    samples: LabelledPairs
    regions: StoredRegions

    def __post_init__(self) -> None:
        """Raises: DataError for images without regions, before any is read."""
        names = self.samples.pictures
        lacking = [name for name in names if self.regions.find(name) is None]
        if lacking or not names:
            what = f"{len(lacking)} images, {lacking[0]} among them" if lacking else "images without names"
            raise DataError(
                f"{self.regions.folder}: has no regions of {what}, which {self.samples.name} asks about; run "
                "the detector on all of its splits"
            )

    def batch(self, rows: Sequence[int], size: int) -> list[SampleRegions]:
        """Reads the regions of some images. Raises: DataError."""
        return [self.regions.read(self.samples.pictures[row]) for row in rows]


@dataclass(frozen=True)
class Inputs:
    """A split as the model reads it: tokenised texts, and images at `size` pixels or as regions (None for
    texts). Images without a text have an empty one.
    """

    samples: Any
    ids: list[np.ndarray]
    pictures: Seen | StoredPictures | None
    size: int

    def read(
        self, rows: np.ndarray, epoch: int = 0
    ) -> tuple[list[np.ndarray], Tensor | list[SampleRegions] | None]:
        """Returns the texts of some samples, and their pixels [k 3 size size] or regions, alike in every
        epoch. Called from several threads.
        """
        images = None if self.pictures is None else self.pictures.batch(rows.tolist(), self.size)
        return [self.ids[row] for row in rows], images

    def problem(self, row: int) -> str:
        """Says why a sample cannot be read; empty if it can."""
        try:
            self.read(np.array([row]))
        except DataError as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Augmented(Inputs):
    """A training split whose images are changed at random, in each epoch in another way. Where images are
    squeezed, `config.crop_ratio` is that of the squeezed one.
    """

    config: ImageTransformConfig
    seed: int

    @classmethod
    def of(cls, inputs: Inputs, config: ImageTransformConfig, seed: int) -> Self:
        """Raises: DataError if there are no images to change, or regions of them."""
        if not isinstance(inputs.pictures, Seen):
            raise DataError(
                f"{inputs.samples.name}: has no pixels to augment; set the task's augment to None"
            )
        return cls(**vars(inputs), config=config, seed=seed)

    def read(self, rows: np.ndarray, epoch: int = 0) -> tuple[list[np.ndarray], Tensor]:
        assert isinstance(self.pictures, Seen)
        seeds = sample_seed(self.seed, source_seed(self.pictures.title, None), epoch, rows)
        pixels = [self._changed(row, seeds[place : place + 1]) for place, row in enumerate(rows.tolist())]
        return [self.ids[row] for row in rows], torch.cat(pixels)

    def _changed(self, row: int, seed: np.ndarray) -> Tensor:
        """Decodes and changes an image, one at a time as a large one takes much memory: [1 3 size size]."""
        assert isinstance(self.pictures, Seen)
        image, config = self.pictures.decoded(row), self.config
        if self.pictures.transform.whole:
            own = image.shape[2] / image.shape[1]
            low, high = config.crop_ratio
            config = replace(config, crop_ratio=(low * own, high * own))
        [pixels] = ImageTransform(config, (self.size,))([image], seed)
        return pixels


def check_pictures(inputs: Inputs, rows_at_once: int, share: Share) -> None:
    """Reads a split's pictures, shared among ranks. Raises: DataError naming those that cannot be used."""
    if inputs.pictures is None:
        return
    starts, said = range(0, len(inputs.ids), rows_at_once), dict[int, str]()

    def are_broken(start: int) -> Tensor:
        rows = range(start, min(start + rows_at_once, len(inputs.ids)))
        said.update((row, problem) for row in rows if (problem := inputs.problem(row)))
        return torch.tensor([row in said for row in rows])

    mine = share.mine(starts)
    found = torch.cat(share.join(starts, ahead(are_broken, mine) if mine else iter(())))
    broken = found.nonzero().flatten().tolist()
    others = [f"'{inputs.samples.keys[row]}'" for row in broken[1:]]
    more = f"; {len(others):,} more cannot be used: {first_of(others, 9)}" if others else ""

    def tell() -> None:
        if broken and broken[0] in said:  # on the rank that has read it
            raise DataError(f"{said[broken[0]]}{more}")

    share.together(tell)


def inputs_of(
    model: FrozenModel, samples: LabelledTexts | LabelledPairs | LabelledImages, encoder: Any
) -> Inputs:
    """Tokenises a split for an encoder. Texts of images are truncated like captions, others like texts."""
    size, regions = getattr(encoder, "image_size", 0), getattr(encoder, "stored_regions", None)
    if isinstance(samples, LabelledImages):
        nothing = np.empty(0, dtype=np.int64)
        return Inputs(samples, [nothing] * len(samples), Seen(samples, TRANSFORMS[IMAGES]), size)
    if isinstance(samples, LabelledPairs):
        whole = Seen(samples, TRANSFORMS[IMAGES_WITH_TEXT])
        seen = whole if regions is None else StoredPictures(samples, regions)
        return Inputs(samples, ids_of(model, "pair", samples.texts), seen, size)
    return Inputs(samples, ids_of(model, "text", samples.texts, samples.second), None, size)


def ids_of(
    model: FrozenModel, kind: str, texts: Sequence[str], second: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Tokenises texts of a kind, or pairs of texts, each of which becomes one sequence."""
    most = model.most_tokens[kind]
    ids = model.tokenizer.encode_batch(texts, most)
    if second is None:
        return ids
    others = model.tokenizer.encode_batch(second, most)
    return [joined(first, other, most) for first, other in zip(ids, others, strict=True)]


class Network(nn.Module):
    """An encoder and a head; the head computes in fp32."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head.float()

    def forward(self, texts: list[np.ndarray], images: Tensor | list[SampleRegions] | None) -> Tensor:
        return self.head(self.encoder(texts, images).float())


class Fitting:
    """Trains one network on one split with AdamW. Weights in half precision have fp32 masters."""

    def __init__(
        self, name: str, network: Network, train: Inputs, goal: Goal, recipe: Recipe, share: Share
    ) -> None:
        self.name, self.network, self.train = name, network, train
        self.goal, self.recipe, self.share = goal, recipe, share
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.masters = {
            n: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for n, p in self.parameters.items()
        }
        self.optimizer = torch.optim.AdamW(
            list(self.masters.values()),
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
        )

    def run(self, judge: Callable[[Progress], str], saved: Saved, tell: Callable[[str], None]) -> Progress:
        """Trains to the end, resuming an interrupted training. `judge` scores the weights and returns a line
        for `tell`; the best ones are kept.
        """
        progress = Progress()
        if (found := self.share.from_main(saved.load)) is not None:
            tensors, progress = found
            self.restore(tensors, progress.update)
            self._keep(saved, progress)
            tell(f"{self.name}: resumes after update {progress.update:,}")
        try:
            self._train(progress, judge, saved, tell)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"interrupted; {saved.goes_on()}") from error
        return progress

    def _train(
        self, progress: Progress, judge: Callable[[Progress], str], saved: Saved, tell: Callable[[str], None]
    ) -> None:
        clock, loss, since = time.monotonic(), torch.zeros((), device=self.device), 0
        for update, batches in self._updates(progress.update):
            loss, since = loss + self.step(update, batches), since + 1
            progress.update = update + 1
            judged = self.recipe.is_judged(progress.update)
            if judged:
                said = judge(progress)
                tell(
                    f"{self.name}: update {progress.update:,} of {self.recipe.last_update:,}, loss "
                    f"{float(loss) / since:.4f}, {said}"
                )
                loss, since = torch.zeros_like(loss), 0
            if judged or time.monotonic() - clock > SAVED_EVERY_S:
                if self.share.is_main:
                    saved.save(self.tensors(), progress)
                self._keep(saved, progress)
                clock = time.monotonic()

    def _keep(self, saved: Saved, progress: Progress) -> None:
        """Keeps the weights if they are the best so far."""
        if self.share.is_main and 0 < progress.best_update == progress.update:
            saved.keep(self.weights(), progress)

    def _updates(self, first: int) -> Iterator[tuple[int, Iterator[tuple[np.ndarray, Any]]]]:
        """Yields each remaining update with this rank's batches (rows, inputs), decoded ahead."""
        while first < self.recipe.last_update:
            length = self.recipe.updates_per_epoch(self.recipe.samples)
            stop = min(first - first % length + length, self.recipe.last_update)
            plans = [self._mine(update) for update in range(first, stop)]
            rows = [batch for plan in plans for batch in plan]
            read = partial(self.train.read, epoch=first // length)
            batches = zip(rows, ahead(read, rows) if rows else (), strict=True)
            for update, plan in enumerate(plans, start=first):
                yield update, (next(batches) for _ in plan)
            first = stop

    def _mine(self, update: int) -> list[np.ndarray]:
        """Returns the rows of this rank's micro-batches of an update."""
        rows = self.recipe.rows(self.name, update)
        size = min(self.recipe.rows_at_once, -(-len(rows) // self.share.parts))
        return [rows[start : start + size] for start in self.share.mine(range(0, len(rows), size))]

    def step(self, update: int, batches: Iterator[tuple[np.ndarray, Any]]) -> Tensor:
        """Makes one update over the batches of all ranks; returns the mean loss."""
        samples = len(self.recipe.rows(self.name, update))
        *gradients, loss = self.share.add(lambda: self._gradients(samples, batches))
        for master, gradient in zip(self.masters.values(), gradients, strict=True):
            master.grad = gradient.float()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(update)
        self.optimizer.step()
        self._publish()
        return loss

    @torch.enable_grad()
    def _gradients(self, samples: int, batches: Iterator[tuple[np.ndarray, Any]]) -> list[Tensor]:
        """Returns the gradients of the mean loss over `samples`, and that loss, from this rank's batches."""
        self.network.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for rows, (texts, images) in batches:
            targets = self.goal.targets(self.train.samples, rows).to(self.device)
            loss = self.goal.losses(self.network(texts, images), targets).sum() / samples
            loss.backward()
            total = total + loss.detach()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        return [*gradients, total]

    @torch.no_grad()
    def _publish(self) -> None:
        """Copies fp32 masters into the network where it computes in half precision."""
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def predict(self, inputs: Inputs) -> np.ndarray:
        """Returns the head's outputs for a split, see `outputs_of`."""
        return outputs_of(self.name, self.network, inputs, self.recipe.rows_at_once, self.share)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights of encoder and head, trained or not, those that were trained in fp32."""
        return {**self.network.state_dict(), **{n: master.detach() for n, master in self.masters.items()}}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the weights and moments to save."""
        found = {f"weight/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}/{name}"] = self.optimizer.state[master][moment]
        return found

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], update: int) -> None:
        """Restores the weights and moments saved after `update` updates."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"weight/{name}"])
            moments = {
                moment: tensors[f"{moment}/{name}"].to(self.device) for moment in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[master] = {"step": torch.tensor(float(update)), **moments}
        self._publish()


def outputs_of(name: str, network: Network, inputs: Inputs, rows_at_once: int, share: Share) -> np.ndarray:
    """Returns the outputs of a fine-tuned network for a split: [N outputs] fp32.

    Raises: UserError if one is not finite.
    """
    starts = range(0, len(inputs.ids), rows_at_once)
    places = np.arange(len(inputs.ids))
    mine = [places[start : start + rows_at_once] for start in share.mine(starts)]
    read = ahead(inputs.read, mine) if mine else iter(())
    with torch.inference_mode():
        parts = share.join(starts, (network(*batch) for batch in read))
        logits = torch.cat([part.cpu() for part in parts])
    if not torch.isfinite(logits).all():
        raise UserError(
            f"task {name}: the fine-tuned model's outputs are not finite; use --precision fp32, or check the "
            "model's weights"
        )
    return logits.numpy()
