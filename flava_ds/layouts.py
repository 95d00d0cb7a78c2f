"""Weights in the layouts of others: a table per layout between our state-dict names and theirs.

Every conversion is a renaming, a reshape or transposition, and for q, k, v a split along the first axis; so
both directions are exact to the bit.

A family that has such layouts names a module (FamilyConfig.layouts) with a Layouts object, `LAYOUTS`, which
translates configurations and tensors. Files are flava_ds/hf's work.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flava_ds.errors import CheckpointError, did_you_mean


@dataclass(frozen=True)
class Foreign:
    """A model of others in our terms: configurations of the model and its objectives, and tensors by our
    names.
    """

    model: Any
    objectives: dict[str, Any]
    weights: dict[str, Tensor]


class Layouts(Protocol):
    """What a family offers to be read from, and written for, other programs."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Tells whether a state dict of these names, with no configuration beside it, is one of
        this family."""

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Translates what another program wrote; `settings` is its configuration, None for a state dict
        alone.

        Raises: CheckpointError naming `where` and the setting or tensor that does not fit.
        """

    def write(self, config: Any, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns config.json and the tensors of transformers' layout. Raises: CheckpointError."""

    def companions(self, config: Any) -> dict[str, Any]:
        """Returns the files that processors and tokenizers of transformers read: name -> a JSON object, or
        text.
        """


def renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """Applies patterns and their replacements to a name, in their order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and the tensors of theirs that, laid end to end along the first axis, hold the same
    numbers.

    Shapes:
        shape        ours
        their_shape  of each of theirs
    """

    ours: str
    theirs: tuple[str, ...]
    shape: tuple[int, ...]
    their_shape: tuple[int, ...]
    transposed: bool = False
    """Whether theirs is the transpose of ours, which both have two axes."""

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenates and reshapes."""
        parts = [tensors[name].T if self.transposed else tensors[name] for name in self.theirs]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(self.shape)

    def to_theirs(self, tensor: Tensor) -> dict[str, Tensor]:
        """Splits and reshapes."""
        parts = (
            tensor.chunk(len(self.theirs))
            if len(self.theirs) > 1
            else [tensor.T if self.transposed else tensor]
        )
        return {name: part.reshape(self.their_shape) for name, part in zip(self.theirs, parts, strict=True)}


def to_ours(tensors: Mapping[str, Tensor], entries: Collection[Entry], where: str) -> dict[str, Tensor]:
    """Converts their tensors into ours, with nothing missing and nothing left over. `where` names the file in
    messages.

    Raises: CheckpointError naming the first tensor that is missing, unknown or of another shape.
    """
    expected = {name: entry.their_shape for entry in entries for name in entry.theirs}
    check_tensors(tensors, expected, where)
    return {entry.ours: entry.to_ours(tensors) for entry in entries}


def to_theirs(tensors: Mapping[str, Tensor], entries: Collection[Entry], where: str) -> dict[str, Tensor]:
    """Converts our tensors into theirs, with nothing missing and nothing left over.

    Raises: CheckpointError naming the first tensor that is missing, unknown or of another shape.
    """
    check_tensors(tensors, {entry.ours: entry.shape for entry in entries}, where)
    return {name: part for entry in entries for name, part in entry.to_theirs(tensors[entry.ours]).items()}


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compares names and shapes.

    Raises: CheckpointError.
    """
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing:
        found = did_you_mean(missing[0], unknown).replace("did you mean", "the file has")
        raise CheckpointError(
            f"{where}: tensor '{missing[0]}' is missing ({len(missing)} in all){found.rstrip('?')}; the "
            "file does not fit its configuration"
        )
    if unknown:
        raise CheckpointError(
            f"{where}: tensor '{unknown[0]}' is unknown ({len(unknown)} in all); the file does not fit "
            "its configuration"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{where}: tensor '{name}' has shape {list(tensors[name].shape)}, the configuration asks "
                f"for {list(shape)}"
            )
