"""Models of other programs, of any family: opened from their files, and written for transformers."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from flava_ds.config import Config, save
from flava_ds.config.family import FamilyConfig
from flava_ds.config.plain_files import loads, read_small
from flava_ds.config.variants import choices, find, tag_of
from flava_ds.data.tokenizer import load_tokenizer
from flava_ds.errors import CheckpointError
from flava_ds.hf.files import read_file, read_folder, read_json, write_tensors
from flava_ds.layouts import Foreign, Layouts
from flava_ds.storage.tensor_files import save_tensors

log = logging.getLogger(__name__)
ENCODERS = ("vit", "beit")
"""What transformers calls models that only convert, to an image encoder."""

CODEBOOK_FOLDER = "image_codebook"
"""Where a folder of transformers' FLAVA has its image codebook."""
OPEN_CLIP = "open_clip_config.json", "open_clip_"
"""The configuration in an open_clip folder, and the prefix of its weight files."""


def layouts_of(family: str) -> Layouts | None:
    """Returns a family's support for foreign file layouts, or None."""
    module = find(FamilyConfig, family, "family").layouts
    return None if module is None else importlib.import_module(module).LAYOUTS


def recognized(names: Collection[str]) -> Layouts | None:
    """Returns the layouts of the family whose state dict has these names in a foreign layout, or None."""
    known = (layouts_of(family) for family in choices(FamilyConfig))
    return next((layouts for layouts in known if layouts is not None and layouts.recognizes(names)), None)


def open_folder(path: Path) -> Foreign:
    """Opens a folder of transformers (save_pretrained, or a snapshot of the Hub) or of open_clip. Its model
    normalises pictures as the folder's preprocessing does, if that is there.

    Raises: CheckpointError naming the file, setting or tensor that does not fit.
    """
    found = _open(path)
    if not found.model.image_size:
        return found
    image = dataclasses.replace(found.model.image, **_pixel_statistics(path))
    return dataclasses.replace(found, model=dataclasses.replace(found.model, image=image))


def _open(path: Path) -> Foreign:
    if (path / OPEN_CLIP[0]).is_file():
        settings, tensors = read_json(path / OPEN_CLIP[0]), read_folder(path, OPEN_CLIP[1])
        layouts = recognized(tensors)
        if layouts is None:
            raise CheckpointError(
                f"{path}: an open_clip model that no family here supports; it has '{next(iter(tensors))}'"
            )
        return layouts.read(settings, tensors, str(path))
    settings = read_json(path / "config.json")
    model_type = str(settings.get("model_type", "flava"))
    readable = {
        find(FamilyConfig, name, "family").model_type or name: name
        for name in choices(FamilyConfig)
        if layouts_of(name) is not None
    }
    if model_type not in readable:
        known = ", ".join(readable)
        raise CheckpointError(
            f"{path / 'config.json'}: model_type is '{model_type}'; supported are {known}, and of "
            f"{' and '.join(ENCODERS)} the image encoder, with `flava-ds convert`"
        )
    layouts = layouts_of(readable[model_type])
    assert layouts is not None
    tensors, classes = read_folder(path), settings.get("architectures")
    try:
        return layouts.read(settings, tensors, str(path))
    except CheckpointError as error:
        if not (isinstance(classes, list) and classes):
            raise
        raise CheckpointError(f"{error} (its class is {classes[0]})") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # a setting of another type
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path / 'config.json'}: a setting has another type than in transformers ({reason}); copy the "
            "file again"
        ) from error


def _pixel_statistics(path: Path) -> dict[str, tuple[float, ...]]:
    """Returns image_mean and image_std of a folder; empty if it does not tell.

    Raises: CheckpointError if they cannot be read.
    """
    file, theirs = path / "preprocessor_config.json", ("image_mean", "image_std")
    if (path / OPEN_CLIP[0]).is_file():
        file, theirs = path / OPEN_CLIP[0], ("mean", "std")
    if not file.is_file():
        return {}
    try:
        found = loads(read_small(file))
        found = found.get("preprocess_cfg", found)
        ours = zip(("image_mean", "image_std"), theirs, strict=True)
        return {own: tuple(map(float, found[name])) for own, name in ours if name in found}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: not readable ({error}); copy the model's folder again, or delete this file"
        ) from error


def open_file(path: Path) -> Foreign | None:
    """Opens a state dict by the names of its tensors; returns None if no family here recognizes them.

    Raises: CheckpointError.
    """
    tensors = read_file(path, nested=("state_dict",))
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    layouts = recognized(tensors)
    return None if layouts is None else layouts.read(None, tensors, str(path))


def export(config: Config, weights: Mapping[str, Tensor], out: Path) -> None:
    """Exports a model as a transformers folder.

    Raises: CheckpointError if its family has no transformers layout, or the layout cannot hold the model.
    """
    layouts = layouts_of(tag_of(config.model))
    if layouts is None:
        raise CheckpointError(
            f"models of family '{config.model.type}' cannot be written for transformers; use --to safetensors"
        )
    settings, tensors = layouts.write(config, weights)
    files = layouts.companions(config)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, out)
    for name, content in {"config.json": settings, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (out / name).write_text(text, encoding="utf-8")


def drop_codebook(out: Path) -> None:
    """Deletes the image codebook of an earlier export to the same folder, which is of other weights."""
    if (folder := out / CODEBOOK_FOLDER).is_dir():
        shutil.rmtree(folder)
        log.warning("%s: deleted, as these weights come without a codebook", folder)


def config_of(found: Foreign, name: str = "imported") -> Config:
    """Returns a configuration whose model accepts the weights."""
    codebook = {} if found.codebook is None else {"codebook": found.codebook}
    return Config(name=name, model=found.model, objectives=found.objectives, **codebook)


def write_imported(found: Foreign, out: Path) -> Path:
    """Writes a folder for initial_weights: model.safetensors in our names, config.json and any
    image_codebook/. Returns `out`. A head of one task is dropped, which a warning says; another, that the
    vocabulary is not the model's.
    """
    config = config_of(found)
    if found.head is not None:
        log.warning(
            "%s: dropped the head of %d classes, for which a run has no place; `flava-ds evaluate "
            "--own-head` uses it",
            out,
            len(found.head.class_names),
        )
    vocabulary = load_tokenizer(config.data.vocabulary)
    if vocabulary.vocab_size != config.model.text_vocab_size:
        log.warning(
            "%s: names the vocabulary %s, of %s words, and the model has %s; a run with `base: %s` needs "
            "data.vocabulary too",
            out / "config.json",
            config.data.vocabulary,
            f"{vocabulary.vocab_size:,}",
            f"{config.model.text_vocab_size:,}",
            out / "config.json",
        )
    out.mkdir(parents=True, exist_ok=True)
    save(config, out / "config.json")
    write_tensors(found.weights, out)
    if found.codebook_weights:
        save_tensors(found.codebook_weights, out / CODEBOOK_FOLDER / "model.safetensors")
    else:
        drop_codebook(out)
    return out
