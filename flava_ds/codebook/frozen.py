"""The frozen codebook of a run: on the device beside the task, to compute codes that shards do not hold."""

from __future__ import annotations

import logging
from typing import Any

import torch

from flava_ds.codebook.image_codebook import ImageCodebook, load_codebook
from flava_ds.config import Config
from flava_ds.errors import ConfigError

log = logging.getLogger("flava_ds")

NAME = "codebook"
"""Its name among a task's frozen networks."""


def add_codebook(task: Any, config: Config, device: torch.device) -> None:
    """Gives a task the codebook if a source needs it and it has none; in bf16 on CUDA devices if the run is
    in bf16.

    Raises: ConfigError when codes are needed and codebook_weights is not set.
    """
    if NAME in task.frozen or not config.computes_image_codes:
        return
    if config.codebook_weights is None:
        raise ConfigError(
            "codebook_weights is not set, but mim or mmm_image needs image codes; give a codebook's "
            "weights or set both weights to 0"
        )
    if config.codebook_weights == "random":
        log.warning("the image codebook is random: masked image losses are for timing only")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            codebook = ImageCodebook(config.codebook, decoder=False)
    else:
        codebook = load_codebook(config.codebook_weights, config.codebook)
    task.fingerprints[NAME] = codebook.fingerprint()  # before bf16 rounds the weights
    half = config.training.precision == "bf16" and device.type == "cuda"
    codebook = codebook.to(device, torch.bfloat16 if half else torch.float32).requires_grad_(False).eval()
    task.frozen[NAME] = codebook.for_inference(compiled=config.training.compile_codebook)
