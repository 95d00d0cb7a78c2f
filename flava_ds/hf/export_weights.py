"""Exports a run as a Hugging Face folder that transformers opens offline, and verifies the folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import load_weights, locate
from flava_ds.codebook.image_codebook import (
    HUGGINGFACE_CODEBOOK_GROUPS,
    load_codebook,
    save_huggingface_codebook,
)
from flava_ds.config import Config, load, parse
from flava_ds.data.tokenizer import SPECIAL_TOKENS, vocabulary_file
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.config import FlavaConfig
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.families.flava.views import Kind
from flava_ds.hf import families, parity
from flava_ds.hf.mapping import HEADS, flava_entries
from flava_ds.layouts import to_theirs
from flava_ds.objectives.masked_image import MaskedImageConfig
from flava_ds.storage.atomic import write_whole

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest relative difference of fp32 logits that `verify_export` accepts."""
_BICUBIC, _LANCZOS = 3, 1


def export(run_path: Path, out: Path) -> Path:
    """Exports a run's latest checkpoint as a Hugging Face folder. Returns `out`.

    Other families export themselves (flava_ds/hf/families.py); the rest of this module is for FLAVA.

    FlavaForPreTraining, FlavaModel, BertTokenizer and FlavaProcessor open the folder; FlavaImageCodebook
    opens its image_codebook/, which exists if the run has a codebook. transformers requires the encoders'
    poolers, which no loss trains: if the run keeps none, identity matrices with zero biases are written, so
    that a pooled output is the tanh of the CLS. The head of an inactive objective is missing from the file;
    its weight in config.json is 0, and transformers initialises that head at random.

    Raises: CheckpointError if there is no checkpoint, or transformers' layout cannot hold the model.
    """
    config, weights = read_run(run_path)
    if not isinstance(config.model, FlavaConfig):
        families.export(config, weights, out)
        return out
    out.mkdir(parents=True, exist_ok=True)
    write_model(weights, config, out)
    write_processors(config, out)
    if config.codebook_weights and config.codebook.num_groups != HUGGINGFACE_CODEBOOK_GROUPS:
        log.warning(
            "the image codebook has %d groups; transformers' layout has %d, so it is not exported",
            config.codebook.num_groups,
            HUGGINGFACE_CODEBOOK_GROUPS,
        )
    elif config.codebook_weights:
        save_huggingface_codebook(
            load_codebook(config.codebook_weights, config.codebook), out / "image_codebook"
        )
    return out


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


def write_model(weights: Mapping[str, Tensor], config: Config, out: Path) -> None:
    """Writes config.json and model.safetensors. `weights` is FlavaTask's state dict.

    Raises: CheckpointError.
    """
    _require_representable(config)
    theirs = to_theirs(weights, flava_entries(config), "the run's checkpoint")
    if not config.model.poolers:
        for name, encoder in (
            ("image", config.model.image),
            ("text", config.model.text),
            ("multimodal", config.model.multimodal),
        ):
            theirs[f"flava.{name}_model.pooler.dense.weight"] = torch.eye(encoder.hidden_size)
            theirs[f"flava.{name}_model.pooler.dense.bias"] = torch.zeros(encoder.hidden_size)
    families.write_tensors(theirs, out)
    _write_json(out / "config.json", huggingface_config(config))


def huggingface_config(config: Config) -> dict[str, Any]:
    """Translates the configuration into FlavaConfig's JSON."""
    model, codebook = config.model, config.codebook

    def encoder(part: Any, kind: str, **more: Any) -> dict[str, Any]:
        names = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "layer_norm_eps",
        )
        shared = {
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "qkv_bias": True,
        }
        sizes = {name: getattr(part, name) for name in names}
        return {
            "model_type": f"flava_{kind}_model",
            **sizes,
            **shared,
            "initializer_range": model.initializer_range,
            **more,
        }

    image_more = {name: getattr(model.image, name) for name in ("image_size", "patch_size", "num_channels")}
    text_more = {
        name: getattr(model.text, name)
        for name in ("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
    }
    objectives = ("global_contrastive", *HEADS, "itm")
    return {
        "model_type": "flava",
        "architectures": ["FlavaForPreTraining"],
        "dtype": "float32",
        "image_config": encoder(
            model.image, "image", **image_more, mask_token=True, vocab_size=codebook.vocab_size
        ),
        "text_config": encoder(model.text, "text", **text_more),
        "multimodal_config": encoder(model.multimodal, "multimodal", use_cls_token=True),
        "image_codebook_config": {
            "model_type": "flava_image_codebook",
            "num_groups": codebook.num_groups,
            "num_blocks_per_group": codebook.num_blocks_per_group,
            "hidden_size": codebook.hidden_size,
            "input_channels": codebook.num_channels,
            "vocab_size": codebook.vocab_size,
            "freeze": True,
        },
        "init_codebook": False,
        "hidden_size": model.multimodal.hidden_size,
        "layer_norm_eps": model.multimodal.layer_norm_eps,
        "projection_dim": model.projection_dim,
        "logit_scale_init_value": model.logit_scale_init,
        "initializer_range": model.initializer_range,
        **{f"{name}_weight": weight_of(config, name) for name in objectives},
    }


def weight_of(config: Config, objective: str) -> float:
    """Returns an objective's weight; 0 if the run lacks it."""
    return config.objectives[objective].weight if objective in config.objectives else 0.0


def write_processors(config: Config, out: Path) -> None:
    """Writes vocab.txt, tokenizer_config.json, preprocessor_config.json and processor_config.json.

    Raises: DataError if the vocabulary is missing.
    """
    image, codebook = config.model.image, config.codebook
    masking = config.objectives.get("mim", MaskedImageConfig())
    pixels = {"height": image.image_size, "width": image.image_size}
    codebook_pixels = {"height": codebook.image_size, "width": codebook.image_size}
    processor = {
        "image_processor_type": "FlavaImageProcessor",
        "processor_class": "FlavaProcessor",
        **{
            "do_resize": True,
            "size": pixels,
            "resample": _BICUBIC,
            "do_center_crop": True,
            "crop_size": pixels,
        },
        **{"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
        **{"image_mean": list(image.image_mean), "image_std": list(image.image_std)},
        **{"input_size_patches": image.grid_size, "total_mask_patches": masking.num_masked_patches},
        **{
            "mask_group_min_patches": masking.min_patches_per_block,
            "mask_group_min_aspect_ratio": masking.min_aspect_ratio,
        },
        **{"codebook_do_resize": True, "codebook_size": codebook_pixels, "codebook_resample": _LANCZOS},
        **{"codebook_do_center_crop": True, "codebook_crop_size": codebook_pixels},
        **{"codebook_do_rescale": True, "codebook_rescale_factor": 1 / 255, "codebook_do_map_pixels": True},
        # The codebook takes mapped pixels without further normalisation.
        **{"codebook_do_normalize": True, "codebook_image_mean": [0.0] * 3, "codebook_image_std": [1.0] * 3},
    }
    tokens = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True)
    )
    tokenizer = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": config.model.text.max_position_embeddings,
        **tokens,
    }
    shutil.copyfile(vocabulary_file(config.data.vocabulary), out / "vocab.txt")
    _write_json(out / "tokenizer_config.json", tokenizer)
    _write_json(out / "preprocessor_config.json", processor)
    _write_json(
        out / "processor_config.json", {"processor_class": "FlavaProcessor", "image_processor": processor}
    )


@torch.no_grad()
def verify_model(module: FlavaTask, config: Config, out: Path) -> float:
    """Compares the folder `out` with a module, which it converts to fp32 and eval mode.

    See `verify_export`.
    """
    from transformers import FlavaForPreTraining
    from transformers.utils import logging

    logging.disable_progress_bar()  # would interrupt the caller's output for half a second
    theirs, report = FlavaForPreTraining.from_pretrained(
        out, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
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


def read_run(run_path: Path) -> tuple[Config, dict[str, Tensor]]:
    """Reads a run's latest checkpoint and its configuration, or else the run's.

    Raises: CheckpointError, ConfigError.
    """
    found = locate(run_path)
    if isinstance(found, Place):
        return parse(found.read("config.json"), f"{found / 'config.json'}"), load_weights(found)
    beside = found.parent / "config.json"
    return load(beside if beside.is_file() else run_path / "config.json"), load_weights(found)


def _require_representable(config: Config) -> None:
    """Rejects models that transformers cannot hold; warns about differences in rounding.

    Its heads take their size from the unimodal encoders.

    Raises: CheckpointError.
    """
    model = config.model
    for name, encoder in (("image", model.image), ("text", model.text)):
        if weight_of(config, f"mmm_{name}") == 0:
            continue
        if encoder.hidden_size != model.multimodal.hidden_size:
            raise CheckpointError(
                f"model.{name}.hidden_size {encoder.hidden_size} differs from model.multimodal.hidden_size "
                f"{model.multimodal.hidden_size}: transformers gives the mmm_{name} head the {name} "
                "encoder's width, so this model cannot be exported"
            )
        if encoder.layer_norm_eps != model.multimodal.layer_norm_eps:
            told = (
                "transformers gives the mmm_%s head the %s encoder's layer_norm_eps %g, this model uses %g "
                "there; logits may differ slightly"
            )
            log.warning(told, name, name, encoder.layer_norm_eps, model.multimodal.layer_norm_eps)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_whole(path, json.dumps(data, indent=2) + "\n")
