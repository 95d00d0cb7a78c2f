"""Exports a run as a Hugging Face folder that transformers opens offline, and verifies the folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import load_weights, locate
from flava_ds.codebook.image_codebook import (
    HUGGINGFACE_CODEBOOK_GROUPS,
    ImageCodebook,
    load_codebook,
    save_huggingface_codebook,
)
from flava_ds.config import Config, load, parse
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.hf_names import HEADS
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.families.flava.views import Kind
from flava_ds.hf import foreign, parity

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest relative difference of fp32 logits that `verify_export` accepts."""


def export(run_path: Path | str, out: Path, average: str | None = None) -> Path:
    """Exports a run's latest checkpoint, or a checkpoint by its URL, as a Hugging Face folder. Returns `out`.

    Of weights that a training state `average` follows, that is their running average.

    The family's layout says which classes of transformers open it (FLAVA: families/flava/hf.py).
    FlavaImageCodebook opens its image_codebook/, which exists if the run's codebook is where the run had it.

    Raises: CheckpointError if there is no checkpoint, or transformers' layout cannot hold the model.
    """
    config, weights = read_run(run_path, average)
    codebook = codebook_beside(config)  # first: a damaged one must not leave half an export
    foreign.export(config, weights, out)
    if codebook is not None:
        save_huggingface_codebook(codebook, out / foreign.CODEBOOK_FOLDER)
    else:
        foreign.drop_codebook(out)
    return out


def codebook_beside(config: Config) -> ImageCodebook | None:
    """Loads the codebook of a run for its export, which is whole without one; says why if there is none.

    Raises: CheckpointError for a damaged one.
    """
    weights, groups = config.codebook_weights, config.codebook.num_groups
    if weights is None:
        return None
    if groups != HUGGINGFACE_CODEBOOK_GROUPS:
        why = f"has {groups} groups; transformers' layout has {HUGGINGFACE_CODEBOOK_GROUPS}"
    elif weights == "random":
        why = "was random"
    elif not Path(weights).exists():
        why = f"is not at {Path(weights).absolute()}, where the run's '{weights}' would be"
        why += "" if Path(weights).is_absolute() else " (convert where the run was started)"
    else:
        return load_codebook(weights, config.codebook)
    log.warning("the image codebook %s, so it is not exported", why)
    return None


def verify_export(run_path: Path, out: Path) -> float:
    """Reloads an exported folder with transformers and compares all fp32 logits on random batches.

    Returns the largest relative difference.

    Raises: CheckpointError naming the logits that exceed TOLERANCE, or the tensors that transformers reports
    as missing.
    """
    config, weights = read_run(run_path)
    module = build_task(config)
    module.load_state_dict(weights)
    return verify_model(module, config, out)


@torch.no_grad()
def verify_model(module: FlavaTask, config: Config, out: Path) -> float:
    """Compares the folder `out` with a module, which it converts to fp32 and eval mode.

    See `verify_export`.
    """
    from transformers import FlavaForPreTraining
    from transformers.utils import logging

    logging.disable_progress_bar()  # would interrupt the caller's output for half a second
    loaded: Any = FlavaForPreTraining.from_pretrained(
        out, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    theirs, report = loaded  # two, because of output_loading_info, which the annotation leaves out
    absent = tuple(f"{name}_head." for name in (*HEADS, "itm") if name not in module.objectives)
    lost = sorted(name for name in report["missing_keys"] if not name.startswith(absent))
    if lost or report["unexpected_keys"] or report["mismatched_keys"]:
        raise CheckpointError(
            f"{out}: transformers reports missing {lost}, unexpected {sorted(report['unexpected_keys'])}, "
            f"mismatched {report['mismatched_keys']}"
        )
    module, theirs, largest = module.float().eval(), theirs.eval(), 0.0
    for kind in Kind:
        if not module.active(kind):
            continue
        batch = parity.random_batch(kind, config)
        _, expected = parity.their_results(parity.run_theirs(theirs, batch, config), batch)
        for name, logits in parity.our_results(module, batch)[1].items():
            difference = parity.relative_difference(logits, expected[name])
            if not difference <= TOLERANCE:
                raise CheckpointError(
                    f"{out}: {name} of a {kind} batch differ by {difference:.1e} of their largest value; "
                    f"rounding explains at most {TOLERANCE:g}"
                )
            largest = max(largest, difference)
    return largest


def read_run(run_path: Path | str, average: str | None = None) -> tuple[Config, dict[str, Tensor]]:
    """Reads a run's latest checkpoint and its configuration, or else the run's.

    Raises: CheckpointError, ConfigError.
    """
    found = locate(run_path)
    if isinstance(found, Place):
        return parse(found.read("config.json"), f"{found / 'config.json'}"), load_weights(found, average)
    beside = found.parent / "config.json"
    return load(beside if beside.is_file() else Path(run_path) / "config.json"), load_weights(found, average)
