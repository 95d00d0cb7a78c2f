"""Tasks that train a head on a model's states, together with the encoder below it.

Source: paper, section 4 and supplement: GLUE with RoBERTa's settings, multimodal tasks with a two-layer head.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from flava_ds.config import ImageTransformConfig
from flava_ds.config.bounds import check_bounds
from flava_ds.config.data_checks import check_transform
from flava_ds.errors import ConfigError, DataError, MissingPicturesError
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.labelled import state_of_pictures
from flava_ds.evaluation.probe import refuse_training_split
from flava_ds.evaluation.protocols import (
    EvaluationData,
    ImageStates,
    OwnHead,
    PairStates,
    Score,
    Splits,
    TextStates,
)
from flava_ds.evaluation.tuning.fitting import (
    Augmented,
    Fitting,
    Inputs,
    Network,
    check_pictures,
    inputs_of,
    outputs_of,
)
from flava_ds.evaluation.tuning.goals import Goal, Meaning, mean_of
from flava_ds.evaluation.tuning.heads import HEADS, LinearHead, MakeHead, PairHead, SentenceHead, build_head
from flava_ds.evaluation.tuning.kept import IMAGES, IMAGES_WITH_TEXT, PAIRS_OF_TEXTS, TEXTS, Facts, words_of
from flava_ds.evaluation.tuning.own_head import check_made_for, named
from flava_ds.evaluation.tuning.recipe import Recipe
from flava_ds.evaluation.tuning.saved import Progress, Saved
from flava_ds.tensor_hash import hash_of_tensors


@dataclass(frozen=True)
class FineTuning(ABC):
    """Trains on the split "train" and reports the weights that score best on a held-out split.

    The first split of `chosen_on` that exists, with its pictures, chooses the weights; of equal ones the
    later wins, as in fairseq. If `chosen_on` is empty, the last weights are reported; `else_last` also does
    that where none of them exists but the reported one. `also` names more splits to report on; their numbers
    are then averaged too.

    With `own_head` nothing is trained: the head that the model came with tells the classes, which are called
    `head_classes`, or as the model's files call them.
    """

    name: str
    data: EvaluationData
    goal: Goal
    recipe: Recipe
    chosen_on: tuple[str, ...] = ()
    else_last: bool = False
    also: tuple[str, ...] = ()
    own_head: bool = False
    head_classes: tuple[str, ...] = ()
    augment: ImageTransformConfig | None = None
    """How training images are changed at random, in each epoch in another way; None for not at all."""
    make_head: ClassVar[MakeHead]
    reads: ClassVar[str]
    """What its samples are, for messages."""

    def __post_init__(self) -> None:
        """Raises: ConfigError for an augmentation that cannot be drawn."""
        if self.augment is None:
            return
        where = f"task {self.name}: augment"
        if not isinstance(self.augment, ImageTransformConfig):
            raise ConfigError(f"{where} is {self.augment!r:.80}; give a flava_ds.config.ImageTransformConfig")
        check_bounds(self.augment, where)
        check_transform(where, self.augment)

    @property
    def about(self) -> str:
        """Says how it learns, if it does, and on what."""
        return f"{'the own head, as it came,' if self.own_head else 'fine-tuning'} on {self.reads}"

    def reported(self, data: Splits) -> tuple[str, ...]:
        """Returns the split to report on, then those of `also`."""
        return tuple(dict.fromkeys((data.split, *self.also)))

    def settings(self, data: Splits) -> dict[str, Any]:
        """Returns what ran on `data`, the updates made and the split that chose the weights included, and the
        published settings beside it, if there are any, which are for the published training split.
        """
        if self.own_head:
            return {"own_head": True, **({"classes": self.head_classes} if self.head_classes else {})}
        ran = self.recipe.fitted(len(data.read("train")))
        found = {
            **dataclasses.asdict(ran),
            "last_update": ran.last_update,
            "chosen_on": self._choosing(data),
        }
        if self.augment is not None:
            found["augment"] = dataclasses.asdict(self.augment)
        if self.recipe.is_for_any_size:
            return found
        published = {**dataclasses.asdict(self.recipe), "last_update": self.recipe.last_update}
        return {**found, "published": {**published, "chosen_on": list(self.chosen_on)}}

    @abstractmethod
    def encoder(self, model: FrozenModel) -> Any:
        """Returns a copy of what encodes the samples, to be trained below the head."""

    def run(self, model: FrozenModel, data: Splits) -> dict[str, Score]:
        """Returns the goal's numbers. Raises: DataError, UserError."""
        refuse_training_split(self.name, data)
        splits = {split: data.read(split) for split in self.reported(data)}
        if self.own_head:
            return self._as_it_came(model, splits)
        tell = model.workplace.tell
        chooses = self._choosing(data, tell)
        read = splits | ({chooses: data.read(chooses)} if chooses else {})
        train = data.read("train")
        self.goal.check(train, read)
        recipe, meaning = self.recipe.fitted(len(train)), self.goal.meaning(train)
        encoder = self.encoder(model)
        head = build_head(type(self).make_head, encoder.width, meaning.outputs, recipe.seed)
        network = Network(encoder, head).to(model.device).eval()
        identity = self._identity(encoder, meaning.outputs, recipe, train, read)
        if self.else_last and chooses:
            identity["chosen on"] = chooses
        kept = self._facts(model, train, network, meaning) if model.workplace.keep_weights else None
        saved = Saved(model.workplace.states, self.name, identity, kept)
        if (known := model.share.from_main(saved.finished)) is not None:
            where = f"; its weights are {saved.weights}" if saved.weights is not None else ""
            tell(f"{self.name}: finished before with the same weights, samples and recipe{where}")
            model.workplace.read_again.add(self.name)
            return known
        with saved:
            model.share.from_main(saved.begin)
            held_out = {split: inputs_of(model, samples, encoder) for split, samples in read.items()}
            for split in held_out.values() if chooses is None else ():  # which are read after the last update
                check_pictures(split, recipe.rows_at_once, model.share)
            inputs = inputs_of(model, train, encoder)
            if self.augment is not None:
                inputs = Augmented.of(inputs, self.augment, recipe.seed)
            fitting = Fitting(self.name, network, inputs, self.goal, recipe, model.share)

            def judge(progress: Progress) -> str:
                return self._judge(progress, fitting, held_out, tuple(splits), chooses)

            progress = fitting.run(judge, saved, tell)
            if model.share.is_main:
                saved.finish(progress)
            if saved.weights is not None:
                tell(f"{self.name}: the weights after update {progress.best_update:,} are {saved.weights}")
        return progress.scores

    def _facts(self, model: FrozenModel, train: Any, network: Network, meaning: Meaning) -> Facts:
        """Returns what the file of the kept weights says of itself."""
        states, name = self.reads, type(network.head).__name__
        if getattr(train, "second", None) is not None:
            states = PAIRS_OF_TEXTS
        return Facts(
            task=self.name,
            states=states,
            head=name if HEADS.get(name) is type(network.head) else "",
            meaning=meaning,
            image_size=getattr(network.encoder, "image_size", 0),
            words=words_of(model),
        )

    def _as_it_came(self, model: FrozenModel, splits: dict[str, Any]) -> dict[str, Score]:
        """Scores the model with its own head as it came. Raises: DataError, UserError."""
        head = model.need(OwnHead, f"task {self.name} with --own-head")
        check_made_for(head.made_for, self.name)
        encoder = self.encoder(model)
        names = named(head.class_names, self.head_classes, self.name)
        network = Network(encoder, copy.deepcopy(head.layers)).to(model.device).eval()
        for samples in splits.values():  # before hours of encoding
            self.goal.of_own_head(np.empty((0, len(names)), np.float32), names, samples)
        parts = {}
        for split, samples in splits.items():
            inputs = inputs_of(model, samples, encoder)
            logits = outputs_of(self.name, network, inputs, self.recipe.rows_at_once, model.share)
            parts[split] = self.goal.scores(*self.goal.of_own_head(logits, names, samples))
        return combined(parts)

    def _choosing(self, data: Splits, tell: Callable[[str], None] = lambda _: None) -> str | None:
        """Returns the split that chooses the weights: the first that exists and whose pictures are all there.

        Raises: DataError if there is none.
        """
        if not self.chosen_on:
            return None
        there = [split for split in self.chosen_on if split == data.split or data.has(split)]
        if self.else_last and not (there := [split for split in there if split != data.split]):
            return None
        if not there:
            raise DataError(
                f"task {self.name}: split {' or '.join(self.chosen_on)} of {self.data.name}, which chooses "
                f"the weights, is missing; expected {self.data.layout}"
            )
        for split in there[:-1]:
            try:
                data.read(split)
            except MissingPicturesError:
                tell(f"{self.name}: pictures of {split} are missing, so another split chooses the weights")
                continue
            return split
        return there[-1]

    def _judge(
        self,
        progress: Progress,
        fitting: Fitting,
        held_out: dict[str, Inputs],
        reported: tuple[str, ...],
        chooses: str | None,
    ) -> str:
        """Scores the weights and records the result if it is the best so far; returns a line for the log."""
        outputs: dict[str, np.ndarray] = {}

        def predicted(split: str) -> np.ndarray:
            if split not in outputs:
                outputs[split] = fitting.predict(held_out[split])
            return outputs[split]

        if chooses is None:
            if progress.update < fitting.recipe.last_update:
                return "not evaluated yet"
            said = "the last weights are reported"
        else:
            merit = self.goal.merit(predicted(chooses), held_out[chooses].samples)
            if progress.merit is not None and merit < progress.merit:
                return f"{chooses} {merit:.4f}, best {progress.merit:.4f}"
            progress.merit, said = merit, f"{chooses} {merit:.4f}, the best so far"
        progress.best_update = progress.update
        parts = {split: self.goal.scores(predicted(split), held_out[split].samples) for split in reported}
        progress.scores = combined(parts)
        return said

    def _identity(
        self, encoder: nn.Module, outputs: int, recipe: Recipe, train: Any, read: dict[str, Any]
    ) -> dict[str, Any]:
        """Describes what a saved state depends on."""
        regions = getattr(encoder, "stored_regions", None)
        return {
            **({} if regions is None else {"regions": regions.fingerprint}),
            **({} if self.augment is None else {"augment": dataclasses.asdict(self.augment)}),
            "outputs of the head": outputs,
            "weights": hash_of_tensors(encoder.state_dict()),
            "training samples": train.fingerprint,
            "samples": {split: samples.fingerprint for split, samples in read.items()},
            "files of pictures": {name: state_of_pictures(own) for name, own in {"": train, **read}.items()},
            "recipe": dataclasses.asdict(recipe),
            "goal": repr(self.goal),
        }


@dataclass(frozen=True)
class TextFineTuning(FineTuning):
    """Fine-tunes the text encoder on texts or pairs of texts."""

    reads: ClassVar[str] = TEXTS
    suite: ClassVar[str] = "text"
    group: ClassVar[str] = "language"
    needs: ClassVar[tuple[type, ...]] = (TextStates,)
    make_head: ClassVar[MakeHead] = SentenceHead

    def encoder(self, model: FrozenModel) -> Any:
        return model.need(TextStates, f"task {self.name}").text_states()


@dataclass(frozen=True)
class PictureFineTuning(FineTuning):
    """Fine-tunes on images that are `enlarged` times as large as in pre-training, or have `image_size` pixels
    an edge for any model; with the model's own head, as large as its configuration says."""

    enlarged: float = 1.0
    image_size: int | None = None

    def scale(self, model: FrozenModel) -> float:
        """Returns how much larger than in pre-training the images are."""
        if self.own_head:
            return 1.0
        return self.image_size / model.image_size if self.image_size else self.enlarged


@dataclass(frozen=True)
class ImageFineTuning(PictureFineTuning):
    """Fine-tunes the image encoder on images alone, which are cropped as for linear probes. Of the suites,
    only "all" has it: the paper's tables have linear probes in its place."""

    reads: ClassVar[str] = IMAGES
    group: ClassVar[str] = "fine-tuned vision"
    needs: ClassVar[tuple[type, ...]] = (ImageStates,)
    make_head: ClassVar[MakeHead] = LinearHead

    def encoder(self, model: FrozenModel) -> Any:
        return model.need(ImageStates, f"task {self.name}").image_states(self.scale(model))


@dataclass(frozen=True)
class PairFineTuning(PictureFineTuning):
    """Fine-tunes all encoders on images with a text, which are squeezed into squares."""

    reads: ClassVar[str] = IMAGES_WITH_TEXT
    suite: ClassVar[str] = "pairs"
    group: ClassVar[str] = "vision-language"
    needs: ClassVar[tuple[type, ...]] = (PairStates,)
    make_head: ClassVar[MakeHead] = PairHead

    def encoder(self, model: FrozenModel) -> Any:
        return model.need(PairStates, f"task {self.name}").pair_states(self.scale(model))


def combined(parts: dict[str, dict[str, Score]]) -> dict[str, Score]:
    """Returns the numbers of a single split, or the means over several splits and each split's numbers."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    means = {
        name: mean_of([scores[name] for scores in parts.values()]) for name in next(iter(parts.values()))
    }
    named = {
        f"{name}_{split.removeprefix('dev_')}": score
        for split, scores in parts.items()
        for name, score in scores.items()
    }
    return means | named
