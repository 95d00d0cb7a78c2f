"""Weights that a run begins with: those of another run, or of another program, once converted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from flava_ds.checkpoints import files
from flava_ds.checkpoints.fits import changed_settings, check_family, family_of, lacked, settings_of
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import check_shapes, load_weights, locate
from flava_ds.config import Config
from flava_ds.errors import CheckpointError, first_of
from flava_ds.ranks.distributed import log

UNSEEN = {
    "num_attention_heads",
    "co_attention_heads",
    "activation",
    "layer_norm_eps",
    "image_mean",
    "image_std",
    "dilated",
    "first_word_only",
}
"""Settings of a model that change what it computes and no tensor's shape."""
MOST_NAMED = 3
"""So many tensors that a file lacks, or that a run has no use for, are named."""


def warn_of_other_settings(path: str, config: Config) -> None:
    """Warns of settings that the model of initial weights had otherwise, and that no tensor shows, if a
    config.json beside them tells.
    """
    try:
        changes = changed_settings(settings_of(locate(path)).parent, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # bare tensors, or another program's file
    others = [
        change
        for change in changes
        if change.startswith("model.") and UNSEEN & set(change.split()[0].split(".")) and "None" not in change
    ]
    if others:
        log.warning(
            "initial_weights %s: its model has other settings than this run (%s), with which the same "
            "tensors compute something else; set them alike, unless that is meant",
            path,
            ", ".join(others),
        )


def check_vocabulary(path: str, fingerprints: Mapping[str, str]) -> None:
    """Compares the vocabulary of the run that wrote initial weights with this one's, if a checkpoint tells.

    Raises: CheckpointError when they differ: rows of the tables of words would stand for other words.
    """
    found = locate(path)
    if not isinstance(found, Place):
        return
    try:
        known = json.loads(found.read(files.STATE))["frozen"].get("vocabulary")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # converted weights, which do not tell
    if known and fingerprints.get("vocabulary", known) != known:
        raise CheckpointError(
            f"initial_weights '{path}' come from a run with another vocabulary than data.vocabulary names, "
            "so rows of its tables of words would stand for other words; name its vocabulary, or to start "
            f"from them all the same, give its tensors, of `flava-ds convert {path} --to safetensors FILE`"
        )


def load_initial_weights(module: nn.Module, path: str, family: str) -> None:
    """Copies the tensors of `path` into the module's parameters and buffers of the same name.

    All others keep their initial values.

    Raises: CheckpointError when another family wrote them, a shape differs, or no name fits.
    """
    known, unused = initial_weights(module, path, family)
    module.load_state_dict(known, strict=False)
    own = module.state_dict()
    fresh = [name for name in own if name not in known]
    log.info(
        "%d of the model's %d tensors come from %s; begin anew: %s; unused of that file: %s",
        len(known),
        len(own),
        path,
        first_of(fresh, MOST_NAMED) or "none",
        first_of(unused, MOST_NAMED) or "none",
    )


@contextmanager
def of_that_shape(found: Place | Path) -> Iterator[None]:
    """Adds to an error inside which recipe has the shape of the weights, if a file beside them tells."""
    try:
        yield
    except CheckpointError as error:
        base = settings_of(found)
        if family_of(found) is None or base.local is None:
            raise
        raise CheckpointError(
            f"{error}; {base} has their shape: train a YAML file with `base: {base}` and what differs"
        ) from error


def initial_weights(module: nn.Module, path: str, family: str) -> tuple[dict[str, Tensor], list[str]]:
    """Reads the tensors of `path` that the module has, and names the others. Warns of those that a module of
    their name here lacks.

    Raises: CheckpointError as load_initial_weights.
    """
    found = locate(path)
    check_family(found, family)
    weights, own = load_weights(path), module.state_dict()
    known = {name: tensor for name, tensor in weights.items() if name in own}
    if not known:
        raise CheckpointError(
            f"initial_weights '{path}': none of its {len(weights)} tensors belongs to this model, e.g. "
            f"'{next(iter(weights), '')}' against '{next(iter(own))}'; convert other layouts with "
            "`flava-ds convert FROM --to flava_ds OUT` first"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in known.items()}
    with of_that_shape(found):
        check_shapes(
            shapes,
            {name: tuple(own[name].shape) for name in known},
            f"initial_weights '{path}'",
            of_parameters=True,
        )
    if broken := [name for name, tensor in known.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"initial_weights '{path}': '{broken[0]}' holds infinities or no numbers; the model has diverged "
            "or the file is damaged, so take another"
        )
    unused = [name for name in weights if name not in own]
    if lacking := lacked(unused, own, module):
        log.warning(
            "initial_weights %s: '%s'%s: modules of that name are here, but without such a tensor, so they "
            "compute something else than in that file's model; compare the options of both models",
            path,
            lacking[0],
            f" and {len(lacking) - 1} more" if len(lacking) > 1 else "",
        )
    return known, unused
