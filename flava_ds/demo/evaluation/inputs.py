"""Inputs of every measurement: configuration, tokenizer, codebook and the held-out sets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flava_ds.codebook.image_codebook import ImageCodebook, load_codebook
from flava_ds.config import Config
from flava_ds.errors import CheckpointError, DataError
from flava_ds.evaluation.samples import Samples, read_samples
from flava_ds.storage.shards import expand_shards

SEED = 20_260
"""Seed of every mask and mismatched caption of the evaluation, whatever the run's own seed."""
CODEBOOK_ROWS = 128
"""Images that the codebook encodes at a time."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The demo data set for evaluation; folders are read when first used."""

    config: Config
    root: Path
    """Folder of the demo's data: shards of pairs and texts, and concepts.json."""
    codebook: ImageCodebook | None = None
    codebook_problem: str = ""
    """Why there is no codebook."""

    @cached_property
    def train(self) -> Samples:
        """Pairs of the training styles."""
        return read_samples(self.root / "pairs-train")

    @cached_property
    def unseen_style(self) -> Samples:
        """Pairs of concepts seen in training, drawn in unseen styles."""
        return read_samples(self.root / "pairs-unseen-style")

    @cached_property
    def unseen_concepts(self) -> Samples:
        """Pairs of unseen concepts, in all styles."""
        return read_samples(self.root / "pairs-unseen-concepts")

    @cached_property
    def train_texts(self) -> Samples:
        """Glosses of training."""
        return read_samples(self.root / "text", images=False)

    @cached_property
    def texts(self) -> Samples:
        """Held-out glosses."""
        return read_samples(self.root / "text-test", images=False)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Concept -> label, for all concepts.

        Raises: DataError if concepts.json is missing or malformed.
        """
        path = self.root / "concepts.json"
        try:
            return {
                entry["concept"]: entry["label"] for entry in json.loads(path.read_text(encoding="utf-8"))
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not the list of concepts that the builder writes ({type(error).__name__}: "
                f"{error}); unpack the data set again"
            ) from error

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the pairs' shards and the concepts, which determine all results without a model."""
        digest = hashlib.sha256()
        shards = [
            shard
            for folder in ("pairs-train", "pairs-unseen-style", "pairs-unseen-concepts")
            for shard in expand_shards(str(self.root / folder))
        ]
        for path in [*shards, self.root / "concepts.json"]:
            digest.update(path.relative_to(self.root).as_posix().encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def held_out_sets(self) -> dict[str, Samples]:
        """Returns the held-out styles one by one, then the unseen concepts."""
        return self.styles_of(self.unseen_style) | {"unseen_concepts": self.unseen_concepts}

    def styles_of(self, samples: Samples) -> dict[str, Samples]:
        """Splits samples by drawing style; returns the same objects on every call, so that caches work."""
        return self._styles.setdefault(
            samples.name,
            {
                str(style): samples.select(
                    np.flatnonzero(samples.column("style") == style), f"{samples.name}/{style}"
                )
                for style in np.unique(samples.column("style"))
            },
        )

    @cached_property
    def _styles(self) -> dict[str, dict[str, Samples]]:
        return {}

    def codes(self, samples: Samples, count: int) -> Tensor:
        """Returns the codes of a set's first `count` images, cached, on the codebook's device: [count n]."""
        found = self._codes.get(samples)
        if found is None or len(found) < count:
            assert self.codebook is not None  # without one, no measurement asks for codes
            device = next(self.codebook.parameters()).device
            parts = samples.pixels(self.config.codebook.image_size)[:count].split(CODEBOOK_ROWS)
            found = self._codes[samples] = torch.cat(
                [self.codebook.encode(rows.to(device)).cpu() for rows in parts]
            )
        return found[:count]

    @cached_property
    def _codes(self) -> dict[Samples, Tensor]:
        return {}

    def masking(self, name: str) -> Any:
        """Returns the masked objective of a kind of FLAVA's, however the run calls it; None without one."""
        from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
        from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig

        base = MaskedTextConfig if name in ("mlm", "mmm_text") else MaskedImageConfig
        of_pairs = (MultimodalMaskedTextConfig, MultimodalMaskedImageConfig)
        pairs = name.startswith("mmm")
        for objective in self.config.objectives.values():
            if isinstance(objective, base) and isinstance(objective, of_pairs) == pairs:
                return objective
        return None


def build_inputs(config: Config, root: Path) -> Inputs:
    """Loads the codebook, if possible."""
    if config.codebook_weights is None:
        return Inputs(config, root, None, "the run's configuration names no codebook_weights")
    try:
        return Inputs(config, root, load_codebook(config.codebook_weights, config.codebook))
    except CheckpointError as error:
        return Inputs(config, root, None, str(error))
