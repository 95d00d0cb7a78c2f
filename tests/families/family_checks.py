"""What tests of several families ask of a task and of what its trained model offers; small vocabularies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families.bert.bert_peers import randomize
from sample_batches import denominators
from torch import Tensor

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.evaluation.protocols import CAPABILITIES, Losses
from flava_ds.optimizers.base import parameter_groups
from flava_ds.training.task import Task

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s")


def numbered_words() -> list[str]:
    """A vocabulary of 200 words whose special tokens are where the batches have them."""
    words = [f"w{number}" for number in range(200)]
    words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return words


def with_words(config: Config, folder: Path, words: Sequence[str] = WORDS) -> Config:
    """The configuration with a vocabulary of its own, a file in `folder`."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=str(path)))


def step(task: Task, batch: Batch) -> Tensor:
    """The loss of a step of this batch alone."""
    return task("step", batch, denominators(task, batch)).loss


def check_recomputation(
    build: Callable[[Config], Task], config: Config, loss: Callable[[Task], Tensor]
) -> None:
    """Activation checkpointing changes no gradient."""
    training = dataclasses.replace(config.training, activation_checkpointing=True)
    plain, again = build(config), build(dataclasses.replace(config, training=training))
    for task in (plain, again):
        loss(task).backward()
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def check_users(build: Callable[[Config], Task], config: Config, batch: Batch) -> None:
    """Every parameter gets a gradient from the objectives that users() says, and each has one."""
    used = set()
    for name, own in config.objectives.items():
        task = randomize(build(dataclasses.replace(config, objectives={name: own})))
        step(task, batch).backward()
        for parameter, kinds in task.users().items():
            grad = task.get_parameter(parameter).grad
            got = grad is not None and bool(grad.abs().max() > 0)
            assert got == (kinds == {batch.kind}), (name, parameter)
            used |= {parameter} if kinds else set()
    assert used == {name for name, _ in build(config).named_parameters()}


def check_decay(task: Task, optimizer: Any, exempt: Callable[[str, Tensor], bool]) -> None:
    """Weights decay as the optimizer is told, but for those that are exempt."""
    groups = parameter_groups(task, task.users(), optimizer)
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in task.named_parameters():
        expected = 0.0 if exempt(name, parameter) else optimizer.weight_decay
        assert decay[id(parameter)] == expected, name


def texts_of(batch: Batch, name: str = "input_ids", bounds: str = "cu_seqlens") -> list[np.ndarray]:
    """The texts of a batch, as evaluations give them."""
    return [own.numpy() for own in batch[name].split(batch[bounds].diff().tolist())]


def check_image_states(features: Any, states: Any, pixels: Tensor) -> None:
    """Image states are the features with a graph of all that asks for it, from weights of their own."""
    own, larger = states.image_states(), states.image_states(2.0)
    found, expected = own.train()([], pixels), features.image_features(pixels)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)
    assert own.width == found.shape[1] and own.image_size == pixels.shape[-1]
    found.square().sum().backward()
    trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad is None for parameter in features.model.parameters())
    edge = larger.image_size
    assert edge == 2 * own.image_size
    assert larger([], torch.zeros(2, 3, edge, edge, dtype=torch.uint8)).shape == (2, own.width)


def by_kind(parts: tuple, lacks: Mapping[str, str], kinds: Iterable[type] = CAPABILITIES) -> dict[type, Any]:
    """What a trained model offers, one of a kind; those that it says it lacks have to be all the others."""
    found = {kind: [own for own in parts if isinstance(own, kind)] for kind in kinds if kind is not Losses}
    assert {kind.__name__ for kind, own in found.items() if not own} == lacks.keys()
    assert all(len(own) <= 1 for own in found.values())
    return {kind: own[0] for kind, own in found.items() if own}
