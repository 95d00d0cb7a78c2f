"""Weights in the layouts of other programs: tables between this package's state-dict names and theirs.

Every conversion is a renaming, a reshape or transposition, and for q, k, v a split along the first axis, so
both directions are exact to the bit.

A family with such layouts names a module (FamilyConfig.layouts) with a Layouts object, `LAYOUTS`, which
translates configurations and tensors. flava_ds/hf reads and writes the files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flava_ds.errors import CheckpointError, did_you_mean
from flava_ds.weightless import weightless


@dataclass(frozen=True)
class TunedHead:
    """A head that was fine-tuned for one task, on the state that its family gives to be fine-tuned.

    Shapes:
        layers  [b d] -> [b z]
    """

    layers: nn.Sequential
    class_names: tuple[str, ...]
    made_for: str = ""
    """The class that it is of, as its files say; empty if they do not."""


@dataclass(frozen=True)
class Foreign:
    """Another program's model in our terms: configurations of the model and its objectives, and weights."""

    model: Any
    objectives: dict[str, Any]
    weights: dict[str, Tensor]
    codebook: Any = None
    """The configuration of its image codebook; None for none."""
    codebook_weights: dict[str, Tensor] = field(default_factory=dict)
    """By the names of transformers' FlavaImageCodebook; empty when the files have none."""
    dropped: tuple[str, ...] = ()
    """Foreign names that are not used here."""
    head: TunedHead | None = None


class Layouts(Protocol):
    """The methods with which a family supports the layouts of other programs."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether a state dict with these names, without a configuration, is of this family. Most do
        not tell, for lack of the number of heads.
        """
        return False

    def read(self, settings: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], where: str) -> Foreign:
        """Translates another program's model; `settings` is its configuration, None for a bare state dict.

        Raises: CheckpointError that names `where` and the setting or tensor that does not fit.
        """

    def write(self, config: Any, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns config.json and the tensors in transformers' layout. Raises: CheckpointError."""

    def companions(self, config: Any) -> dict[str, Any]:
        """Returns the files of transformers' processors and tokenizers: name -> JSON object or text."""


def renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """Applies patterns and their replacements to a name, in order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class Entry:
    """One of our tensors, and those of theirs that hold the same numbers, concatenated on the first axis.

    Shapes:
        shape        ours
        their_shape  each of theirs
    """

    ours: str
    theirs: tuple[str, ...]
    shape: tuple[int, ...]
    their_shape: tuple[int, ...]
    transposed: bool = False
    """Whether theirs is the transpose of ours; both then have two axes."""

    def to_ours(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Concatenates and reshapes."""
        parts = [tensors[name].T if self.transposed else tensors[name] for name in self.theirs]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(self.shape)

    def to_theirs(self, tensor: Tensor) -> dict[str, Tensor]:
        """Splits and reshapes."""
        parts: Sequence[Tensor] = [tensor.T if self.transposed else tensor]
        if len(self.theirs) > 1:
            parts = tensor.chunk(len(self.theirs))
        return {name: part.reshape(self.their_shape) for name, part in zip(self.theirs, parts, strict=True)}


def to_ours(tensors: Mapping[str, Tensor], entries: Collection[Entry], where: str) -> dict[str, Tensor]:
    """Converts their tensors to ours, with none missing or left over. `where` names the file in messages.

    Raises: CheckpointError that names the first tensor that is missing, unknown, of another shape, or holds
    infinities or no numbers.
    """
    expected = {name: entry.their_shape for entry in entries for name in entry.theirs}
    check_tensors(tensors, expected, where)
    if wrong := next((name for name in expected if not tensors[name].isfinite().all()), None):
        raise CheckpointError(
            f"{where}: tensor '{wrong}' holds infinities or no numbers: the model has diverged, or the "
            "file is damaged; take another"
        )
    return {entry.ours: entry.to_ours(tensors) for entry in entries}


def to_theirs(tensors: Mapping[str, Tensor], entries: Collection[Entry], where: str) -> dict[str, Tensor]:
    """Converts our tensors to theirs, with none missing or left over.

    Raises: CheckpointError that names the first tensor that is missing, unknown or of another shape.
    """
    check_tensors(tensors, {entry.ours: entry.shape for entry in entries}, where)
    return {name: part for entry in entries for name, part in entry.to_theirs(tensors[entry.ours]).items()}


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compares names and shapes. Raises: CheckpointError."""
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
                f"{where}: tensor '{name}' has shape {list(tensors[name].shape)}, but the configuration has "
                f"{list(shape)}"
            )


def tuned_head(
    tensors: dict[str, Tensor],
    parts: Sequence[str | nn.Module],
    settings: Mapping[str, Any],
    where: str,
    *,
    eps: float = 1e-5,
) -> TunedHead | None:
    """Takes the head of a class for one task out of `tensors`; None if its last layer is not there.

    `parts` are its layers, by the names of their tensors, linear or LayerNorm (with `eps`), and its
    activations. A class is called as id2label says, or LABEL_0 and so on.

    Raises: CheckpointError if a tensor is missing, or does not fit the layer before.
    """
    if f"{parts[-1]}.weight" not in tensors:
        return None
    layers: list[nn.Module] = []
    width = None
    for part in parts:
        if isinstance(part, nn.Module):
            layers.append(part)
            continue
        try:
            own = {kind: tensors.pop(f"{part}.{kind}") for kind in ("weight", "bias")}
        except KeyError as error:
            raise CheckpointError(f"{where}: tensor {error} of the head is missing") from error
        weight = own["weight"]
        shapes = list(weight.shape), list(own["bias"].shape)
        if not (len(shapes[0]) in (1, 2) and shapes[1] == shapes[0][:1] and width in (None, shapes[0][-1])):
            raise CheckpointError(
                f"{where}: tensor '{part}.weight' of the head has shape {shapes[0]}, which does not fit its "
                f"bias of {shapes[1]}{f' and the {width} numbers before it' if width else ''}"
            )
        width = shapes[0][0]
        with weightless():
            linear = weight.dim() == 2
            layer = nn.Linear(*weight.shape[::-1]) if linear else nn.LayerNorm(len(weight), eps=eps)
        layer.load_state_dict(own, assign=True)
        layers.append(layer)
    names = settings.get("id2label") or {}
    classes = tuple(str(names.get(str(number), f"LABEL_{number}")) for number in range(len(weight)))
    return TunedHead(nn.Sequential(*layers), classes, " ".join(settings.get("architectures") or ()))


def take(kind: type, values: Mapping[str, Any]) -> Any:
    """Builds one of our dataclasses from the fields of the same name."""
    return kind(**{f.name: values[f.name] for f in fields(kind) if values.get(f.name) is not None})
