"""A little world in the demo data set's layout, and runs trained on nothing, for the tests of evaluation and
report.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import torch
from checkpoint_helpers import write_checkpoint
from PIL import Image
from sample_batches import tiny_config

from flava_ds import config as configuration
from flava_ds.codebook.image_codebook import ImageCodebook, save_codebook
from flava_ds.config import Config, DataConfig, LoggingConfig, SourceConfig
from flava_ds.demo.evaluation.inputs import Inputs, build_inputs
from flava_ds.demo.shards import as_json, write_shards
from flava_ds.evaluation.frozen_model import Described, FrozenModel
from flava_ds.evaluation.opening import freeze
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.storage.atomic import write_whole

WORDS = "apple bear cloud daisy eagle flame grape house igloo jewel kite lemon moon nest owl pear".split()
FILLERS = "a an the of drawing picture emoji icon black and white : grows flies shines ##s".split()
TRAIN_STYLES, UNSEEN_STYLES = (
    ("noto", "twemoji", "fxemoji"),
    ("fluent-emoji-flat", "fluent-emoji-high-contrast"),
)
SEEN = WORDS[:12]
EDGE = 24


def picture(number: int, style: str) -> bytes:
    """Draws the concept's fixed pattern in the style's brightness, high contrast inverted, as
    lossless WebP."""
    draw = np.random.default_rng(number)
    pattern = draw.integers(0, 2, (4, 4, 3)).repeat(EDGE // 4, 0).repeat(EDGE // 4, 1)
    brightness = 90 + 30 * (TRAIN_STYLES + UNSEEN_STYLES).index(style)
    pixels = (pattern * brightness).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(255 - pixels if style == UNSEEN_STYLES[1] else pixels).save(stream, "WEBP", lossless=True)
    return stream.getvalue()


def pair(number: int, style: str) -> dict:
    """One sample with the fields that the evaluation reads."""
    word = WORDS[number]
    record = {
        "concept": word,
        "label": word,
        "style": style,
        "set": style,
        "group": f"group-{number % 3}",
        "subgroup": f"subgroup-{number % 6}",
        "tags": [],
        "captions": [f"a drawing of {word}", word],
        "family": word,
        "hexcode": f"{number:04X}",
    }
    return {
        "key": f"{style}_{word}",
        "webp": picture(number, style),
        "txt": f"a drawing of {word}".encode(),
        "json": as_json(record),
    }


def write_world(root: Path) -> Path:
    """Writes twelve concepts in three training and two unseen styles, four concepts never seen, and a few
    glosses.
    """
    seen, unseen = range(len(SEEN)), range(len(SEEN), len(WORDS))
    write_shards(root / "pairs-train", [pair(n, style) for style in TRAIN_STYLES for n in seen], 20)
    write_shards(root / "pairs-unseen-style", [pair(n, style) for n in seen for style in UNSEEN_STYLES], 20)
    write_shards(
        root / "pairs-unseen-concepts",
        [pair(n, style) for n in unseen for style in TRAIN_STYLES + UNSEEN_STYLES],
        20,
    )
    glosses = [
        {"key": f"wordnet_{n}", "txt": f"{w}: the {w} grows and flies".encode(), "json": b"{}"}
        for n, w in enumerate(WORDS)
    ]
    write_shards(root / "text-test", glosses, 20)
    (root / "concepts.json").write_text(
        json.dumps([{"concept": w, "label": w, "seen": w in SEEN} for w in WORDS])
    )
    return root


def world_config(folder: Path, **overrides) -> Config:
    """A tiny configuration whose vocabulary and codebook lie in `folder`. Ranks may share it."""
    vocabulary = folder / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *WORDS]
    write_whole(vocabulary, "\n".join(words) + "\n")
    masking = dict(num_masked_patches=4, min_patches_per_block=1)
    sources = {
        "pair": SourceConfig(kind="pair", seed=0, shards=str(folder / "data" / "pairs-train"), max_tokens=16),
        "text": SourceConfig(kind="text", seed=1, shards=str(folder / "data" / "text-test"), max_tokens=20),
    }
    settings = {
        "objectives": flava_objectives(
            mim=MaskedImageConfig(**masking), mmm_image=MultimodalMaskedImageConfig(**masking)
        ),
        "data": DataConfig(sources=sources, vocabulary=str(vocabulary)),
        "codebook_weights": str(folder / "codebook.safetensors"),
        "logging": LoggingConfig(run_directory=str(folder / "runs")),
    }
    config = tiny_config(**(settings | overrides))
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, warmup_steps=10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_codebook(ImageCodebook(config.codebook), folder / "codebook.safetensors")
    return config


def world(folder: Path, **overrides) -> tuple[Inputs, FlavaTask]:
    """A world, its evaluation inputs and a model with random weights."""
    config = world_config(folder, **overrides)
    return build_inputs(config, write_world(folder / "data")), build_task(config)


def frozen(inputs: Inputs, module: FlavaTask) -> FrozenModel:
    """A world's model as an evaluation sees it."""
    return freeze(inputs.config, module, Described("world", "flava"))


def write_log(path: Path, config: Config, steps: int = 12) -> None:
    """A log as the trainer writes it: a header, then numbers of pair, image and text steps in turn."""
    names = {
        "pair": ("global_contrastive", "mmm_image", "mmm_text", "itm"),
        "image": ("mim",),
        "text": ("mlm",),
    }
    lines = [
        {
            "versions": {"torch": "2.13.0"},
            "hardware": {"device": "cpu"},
            "git": {"commit": "0123abc"},
            "config": configuration.to_dict(config),
        }
    ]
    for step in range(steps):
        kind = ("pair", "image", "text")[step % 3]
        line = {
            "step": step,
            "kind": kind,
            "source": kind,
            "lr": 1e-3 * step / steps,
            "grad_norm": 1.0,
            "samples_per_second": 50.0 + step,
            "data_wait": 0.01,
        }
        line |= {f"loss/{name}": 4.0 - 0.1 * step for name in names[kind]} | {
            f"accuracy/{name}": 0.02 * step for name in names[kind]
        }
        if step < 3:
            line |= {f"gradient_norm/{name}": 0.5 + step for name in names[kind]}
            line |= {
                f"encoder_gradient_norm/{name}/text_encoder": 0.25 for name in names[kind] if name != "mim"
            }
            line |= {f"encoder_gradient_norm/{name}/multimodal_encoder": 0.0 for name in names[kind]}
        lines.append(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(folder: Path) -> tuple[Path, Path]:
    """A run's folder with configuration, log and one checkpoint of random weights, and the world it is
    evaluated on.
    """
    config = world_config(folder)
    run = config.run_path
    run.mkdir(parents=True)
    configuration.save(config, run / "config.json")
    write_log(run / "log.jsonl", config)
    write_checkpoint(run / "checkpoints", 12, build_task(config).state_dict(), config)
    return run, write_world(folder / "data")
