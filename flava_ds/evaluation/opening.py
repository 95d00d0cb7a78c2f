"""Opens a trained model: a run, one of its checkpoints, or a folder in Hugging Face's layout."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from flava_ds import config as configuration
from flava_ds.checkpoints.files import CONFIG, MANIFEST, latest, place_of, step_of
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import WEIGHTS, load_weights, locate
from flava_ds.config import Config, DataConfig
from flava_ds.config.encoders import DETECTORS, RegionTextConfig
from flava_ds.data import tokenizer_files
from flava_ds.data.tokenizer import load_tokenizer
from flava_ds.errors import CheckpointError, UserError
from flava_ds.evaluation.feature_cache import FeatureCache, hash_of_weights
from flava_ds.evaluation.frozen_model import Described, FrozenModel
from flava_ds.evaluation.protocols import OwnHead
from flava_ds.evaluation.run_losses import RunLosses
from flava_ds.evaluation.shares import Share
from flava_ds.families.offers import fingerprint_of_regions
from flava_ds.hf.foreign import config_of, open_folder
from flava_ds.weightless import undrawn, weightless

log = logging.getLogger(__name__)
MOST_TOKENS = {"pair": 77, "text": 512}
"""Text lengths of kinds for which a model does not say; those of the released FLAVA."""
VOCABULARIES = ("vocab.txt", "merges.txt", tokenizer_files.NAME)
"""Of transformers' BertTokenizer and CLIPTokenizer; since version 5 the last alone."""
Precision = Literal["fp32", "bf16"]
NO_WORDS = "no vocabulary"
"""What stands for the vocabulary of a model without one."""


@dataclass(frozen=True)
class Read:
    """A model as its files have it: `run_path` and so on are those of Opened."""

    config: Config
    weights: dict[str, torch.Tensor]
    described: Described
    run_path: Path | None = None
    head: OwnHead | None = None
    wordless: str = ""


@dataclass(frozen=True)
class Opened:
    """A trained model with its configuration. `run_path` is its run's folder, or None."""

    config: Config
    module: nn.Module
    described: Described
    run_path: Path | None
    head: OwnHead | None = None
    """A head that its files bring, fine-tuned elsewhere."""
    wordless: str = ""
    """Why it cannot read texts, if its files lack a vocabulary; else empty."""

    @cached_property
    def weights(self) -> str:
        """Hashes the weights, as features and results of them are marked, with the vocabulary, the lengths of
        texts, and the weights of the detector whose regions the model reads.
        """
        model, config = self.config.model, self.config
        known = NO_WORDS if self.wordless else model.load_tokenizer(config).fingerprint()
        words = (known, most_tokens_of(config))
        regions = None if getattr(model, "detector", None) is None else fingerprint_of_regions(model)
        return hash_of_weights(self.module, (model, *words, regions))

    def frozen(self, cache: FeatureCache | None = None, share: Share | None = None) -> FrozenModel:
        """Returns the model for evaluation."""
        return freeze(self.config, self.module, self.described, share, cache, self.head, self.wordless)


def open_model(
    path: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    regions: Path | None = None,
    average: str | None = None,
) -> Opened:
    """Opens a run (its latest checkpoint), a checkpoint, or a Hugging Face folder. Of URLs it opens those of
    checkpoints, or of the folder that holds a run's; from anywhere else nothing is downloaded.

    `device` defaults to the GPU if there is one. A run trained in bf16 opens in bf16, everything else in
    fp32, unless `precision` says otherwise. `regions` is a folder of stored regions, which a model that reads
    regions takes instead of those of its detector. `average` names a training state, e.g. "ema" or
    "dino.teacher", whose running average the weights are that it follows.

    Raises: CheckpointError naming what is missing or does not fit; UserError if the device does not exist, or
    the model reads no regions.
    """
    device = _device(device)
    if precision not in (None, "fp32", "bf16"):
        raise UserError(f"precision {precision!r}: use 'fp32' or 'bf16'")
    if "://" in str(path):
        read = _read_storage(str(path), average)
    else:
        path = Path(path)
        if is_huggingface(path) and average is not None:
            raise CheckpointError(f"{path}: only runs keep averages; open it without '{average}'")
        read = _read_huggingface(path) if is_huggingface(path) else _read(path, average)
    config = read.config if regions is None else with_regions(read.config, regions)
    module = undrawn(lambda: config.model.build(config))
    try:
        module.load_state_dict(read.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the model in its config.json "
            f"({' '.join(str(error).split())[:300]})"
        ) from error
    if broken := [name for name, own in module.named_parameters() if not own.isfinite().all()]:
        raise CheckpointError(
            f"{path}: '{broken[0]}' holds infinities or no numbers; the model has diverged or is damaged, so "
            "take an earlier checkpoint"
        )
    if precision is None:
        of_run = read.described.step is not None
        precision = "bf16" if of_run and config.training.precision == "bf16" else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    module = module.to(device, dtype).eval().requires_grad_(False)
    return Opened(config, module, read.described, read.run_path, read.head, read.wordless)


def _read(path: Path, average: str | None) -> Read:
    """Reads a checkpoint, or the latest one of a run. Raises: CheckpointError."""
    config, place = configuration.load(path / CONFIG), Place(path)
    found: Place | None = place
    run_path: Path | None = path
    if place.has(MANIFEST):
        above = path.resolve().parent.parent
        run_path = above if (above / CONFIG).is_file() else None
    else:
        found = latest(place_of(path, config))
    if found is None and (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{path}: holds weights to start a run from, with --initial-weights {path}; to use the model "
            "as it is, give the folder that these were converted from, or a run that began with them"
        )
    if found is None:
        raise CheckpointError(
            f"{path}: no checkpoint yet; one is written every checkpoint.every_steps and at the end"
        )
    described = Described(config.name, config.model.type, step_of(found.name), average)
    return Read(config, load_weights(found, average), described, run_path)


def _read_storage(url: str, average: str | None) -> Read:
    """Reads a checkpoint in a storage, or the latest one of a run there. Raises: CheckpointError."""
    found = locate(url)
    if not isinstance(found, Place):  # file:// of weights alone
        raise CheckpointError(f"{url}: holds weights and no checkpoint; give a run's checkpoint")
    config = configuration.parse(found.read(CONFIG), f"{found / CONFIG}")
    described = Described(config.name, config.model.type, step_of(found.name), average)
    return Read(config, load_weights(found, average), described)


def with_regions(config: Config, folder: Path) -> Config:
    """Returns the configuration of a model that takes its regions from a folder, or from a detector.

    Raises: UserError.
    """
    model = config.model
    if not isinstance(model, RegionTextConfig):
        raise UserError(
            f"--regions {folder}: models of family '{model.type}' read pictures and no regions; leave it out"
        )
    if not (folder.is_dir() or folder.is_file() or str(folder) in DETECTORS):
        raise UserError(
            f"--regions {folder}: no such folder; give one with shards of regions, or with *.tsv, or the "
            f"weights of a detector: a file, or {', '.join(DETECTORS)}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, detector=str(folder)))


def freeze(
    config: Config,
    module: nn.Module,
    described: Described,
    share: Share | None = None,
    cache: FeatureCache | None = None,
    head: OwnHead | None = None,
    wordless: str = "",
) -> FrozenModel:
    """Returns a model for evaluation, with its family's capabilities, its tokenizer (or why it has none) and
    sizes, and the head that its files bring.

    Raises: ConfigError if the vocabulary does not fit the model.
    """
    parts, lacks = config.model.offers(module, config)
    losses = RunLosses(config, module)
    if losses.kinds:
        parts = (*parts, losses)
    else:
        lacks = {**lacks, "Losses": "it has no objective whose loss follows from the weights alone"}
    if head is not None:
        parts = (*parts, head)
    else:
        lacks = {**lacks, "OwnHead": "its files have no head of a single task"}
    return FrozenModel(
        described,
        (parts, lacks),
        wordless or config.model.load_tokenizer(config),
        image_size=config.model.image_size,
        most_tokens=most_tokens_of(config),
        device=next(module.parameters()).device,
        share=share,
        cache=cache,
    )


def most_tokens(config: Config, kind: str) -> int:
    """Returns the longest text the model was trained on, from its first source of `kind` ('pair', 'text')."""
    limits = [source.max_tokens for source in config.data.sources.values() if source.kind == kind]
    return min(limits[0] if limits else MOST_TOKENS[kind], config.model.max_tokens)


def most_tokens_of(config: Config) -> dict[str, int]:
    """Returns the longest text of each kind that the model was trained on."""
    return {kind: most_tokens(config, kind) for kind in MOST_TOKENS}


def is_huggingface(path: Path) -> bool:
    """Returns True if a folder holds a model in Hugging Face's layout."""
    try:
        return b'"model_type"' in (path / CONFIG).read_bytes()
    except OSError:
        return False


def _device(name: torch.device | str | None) -> torch.device:
    """Returns the device to use. Raises: UserError if it does not exist."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name}: cannot be used here ({str(error).splitlines()[0][:120]}); give cpu, or cuda:0"
        ) from error
    return device


def _read_huggingface(path: Path) -> Read:
    """Reads a Hugging Face folder, with its vocabulary if it has one, and the head of a class for one task.
    Objectives whose heads it lacks are left out.
    """
    found = open_folder(path)
    config = config_of(found, path.resolve().name)
    with weightless():
        names = config.model.build(config).state_dict()
    lacking = {name.split(".")[1] for name in names if name not in found.weights and "objectives." in name}
    kept = {name: own for name, own in config.objectives.items() if name not in lacking}
    vocabulary, wordless = _vocabulary(path, config)
    config = dataclasses.replace(config, objectives=kept, data=DataConfig(vocabulary=vocabulary))
    described = Described(config.name, config.model.type)
    return Read(config, found.weights, described, head=found.head, wordless=wordless)


def _vocabulary(path: Path, config: Config) -> tuple[str, str]:
    """Returns the vocabulary in a Hugging Face folder, and why the model cannot read texts, if it cannot.
    Without a vocabulary it is the default, if that has as many words as the model, which a warning says.

    Raises: CheckpointError if two of them differ.
    """
    found = [path / name for name in VOCABULARIES if (path / name).is_file()]
    if len(found) > 1 and len({load_tokenizer(str(file)).fingerprint() for file in found}) > 1:
        raise CheckpointError(
            f"{path}: {' and '.join(file.name for file in found)} hold different vocabularies; delete the "
            "one that the model was not trained with"
        )
    if found:
        return str(found[0]), ""
    names, default = f"{', '.join(VOCABULARIES[:-1])} or {VOCABULARIES[-1]}", config.data.vocabulary
    if (words := config.model.text_vocab_size) != load_tokenizer(default).vocab_size:
        return default, (
            f"{path} has no {names}, and its {words:,} words are not those of {default}; copy the "
            "tokenizer's files from where the model came from"
        )
    log.warning(
        "%s: has no %s; texts are read with %s, which has as many words, and if the model was trained with "
        "others, all results are wrong: copy its tokenizer's files into the folder",
        path,
        names,
        default,
    )
    return default, ""
