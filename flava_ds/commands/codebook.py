"""`flava-ds codebook`: trains a recipe's image tokenizer on any images, and stores its codes in shards."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flava_ds.commands.local_path import local_path
from flava_ds.config import Config, SourceConfig
from flava_ds.config.field_docs import field_docs
from flava_ds.config.options import override
from flava_ds.errors import UserError
from flava_ds.ranks.launch import require_shards
from flava_ds.recipes import resolve

SHARDS = "folder, .tar or brace pattern with images"
SMALL_RECIPE = "flava_tiny"
STARTED = time.perf_counter()
"""When the command began, near enough: --max-seconds counts from here."""
PROG = "flava-ds codebook train SHARDS --out FILE"


def add_actions(command: argparse.ArgumentParser) -> None:
    """Adds the actions of `flava-ds codebook`."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")

    def add(name: str, run: Callable[..., Any], help: str, **settings: Any) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, description=help, allow_abbrev=False, **settings)
        # train looks for it itself, as its --help stands alone
        action.add_argument("shards", metavar="SHARDS", nargs="?" if settings else None, help=SHARDS)
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        action.add_argument(
            "--recipe",
            default=SMALL_RECIPE,
            help=f"recipe or config.json whose codebook is built (default: {SMALL_RECIPE})",
        )
        action.set_defaults(run=run, parser=action)
        return action

    action = add("train", run_train, "train an image codebook on pictures", add_help=False)
    action.add_argument("-h", "--help", action="store_true", help="this text")
    action.add_argument("--out", type=local_path, metavar="FILE", help="the .safetensors file to write")
    action.add_argument(
        "--preset",
        help="settings to start from: small (minutes on a CPU) or dalle (as published); default: dalle from "
        "4,096 codes on",
    )
    action.add_argument(
        "--save-seconds",
        type=float,
        default=120.0,
        help="seconds between saved states (default: 120), from which the same command goes on",
    )
    action.set_defaults(print_help=action.print_help)
    action = add("encode", run_encode, "copy shards, each picture with its codes")
    action.add_argument(
        "--out", type=local_path, required=True, metavar="FOLDER", help="where shards with codes go"
    )
    action.add_argument(
        "--codebook",
        type=local_path,
        required=True,
        metavar="FILE",
        help="the codebook's weights to encode with",
    )


def run_train(options: argparse.Namespace, overrides: list[str]) -> int:
    """Trains a codebook, or prints every option with its meaning.

    Raises: UserError.
    """
    if options.help:
        options.print_help()
        print("\n" + describe_settings())
        return 0
    for name, value in (("SHARDS", options.shards), ("--out FILE", options.out)):
        if value is None:
            raise UserError(f"codebook train: {name} is missing; see `flava-ds codebook train --help`")
    if not options.save_seconds > 0:
        raise UserError(f"--save-seconds {options.save_seconds:g}: use more than 0")
    train(
        options.recipe,
        options.shards,
        options.out,
        overrides,
        preset=options.preset,
        save_every_s=options.save_seconds,
    )
    return 0


def run_encode(options: argparse.Namespace) -> int:
    """Writes shards that carry codes."""
    encode(options.recipe, options.shards, options.codebook, options.out)
    return 0


def describe_settings() -> str:
    """Lists the settings of a training with their meaning, and what each preset has."""
    from flava_ds.codebook.config import PRESETS, CodebookTrainingConfig

    meanings, lines = (
        field_docs(CodebookTrainingConfig),
        ["settings, and what --preset small and dalle have:"],
    )
    for field in dataclasses.fields(CodebookTrainingConfig):
        values = [_shown(getattr(preset, field.name)) for preset in PRESETS.values()]
        option = f"--{field.name.replace('_', '-')}"
        lines.append(f"  {option:<20} {' | '.join(dict.fromkeys(values))}")
        lines.append(f"      {meanings[field.name]}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def train(
    recipe: str,
    shards: str,
    out: Path,
    overrides: list[str],
    *,
    preset: str | None = None,
    save_every_s: float = 120.0,
) -> None:
    """Trains the codebook of `recipe` on the pictures in `shards`; `overrides` set fields of
    CodebookTrainingConfig on top of the preset. Ctrl-C or SIGTERM ends it after a step, with its state saved.

    Raises: UserError on an unknown recipe, preset or option, or on shards without pictures;
    KeyboardInterrupt.
    """
    config = resolve(recipe, [])
    from flava_ds.codebook.config import PRESETS, preset_of

    preset = preset or preset_of(config.codebook.vocab_size)
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    training = override(
        PRESETS[preset], overrides, prog=PROG, beside=("preset", "save-seconds", "recipe", "out")
    )
    source = picture_source(config, shards)
    tell(f"codebook of {recipe}, preset {preset}, pictures of {shards}")
    from flava_ds.codebook.training import train_codebook
    from flava_ds.ranks.stop_signals import StopRequest

    request = StopRequest()
    with request.listening():
        train_codebook(
            config,
            {"pictures": source},
            out,
            training=training,
            device=device(),
            on_report=tell,
            tell=tell,
            save_every_s=save_every_s,
            started=STARTED,
            is_asked_to_stop=lambda: request.asked is not None,
        )
    tell(f"{out}\nuse it: {shlex.join(['flava-ds', 'train', recipe, '--codebook-weights', str(out)])} ...")


def tell(line: object) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def encode(recipe: str, shards: str, weights: Path, out: Path) -> None:
    """Writes shards with codes to `out`, computed by the codebook in `weights`.

    Raises: UserError when the codebook is missing or does not fit the recipe, or for unusable shards.
    """
    config = resolve(recipe, [])
    source = picture_source(config, shards)
    if not weights.exists():
        raise UserError(
            f"--codebook {weights}: no such file; train one with `flava-ds codebook train "
            f"{shlex.quote(shards)} --out {shlex.quote(str(weights))}`"
        )
    from flava_ds.codebook.image_codebook import load_codebook
    from flava_ds.prepare.codes import write_codes

    report = write_codes(
        source,
        load_codebook(weights, config.codebook),
        config,
        out=out,
        device=device(),
        on_shard=lambda shard, n: print(f"{shard}: {n} codes"),
    )
    print(report)


def picture_source(config: Config, shards: str) -> SourceConfig:
    """Returns a source of pictures alone, under the transform that the recipe's pictures get: those of its
    images, or else of its pairs.

    Raises: ConfigError or DataError when there are no shards.
    """
    sources = sorted(config.data.sources.values(), key=lambda source: source.kind)  # image, pair, text
    like = next((s for s in sources if s.kind != "text"), SourceConfig(kind="image", shards=shards))
    require_shards("", shards)
    return dataclasses.replace(
        like,
        kind="image",
        shards=shards,
        caption_key=None,
        image_codes_key=None,
        regions_key=None,
        task=None,
        targets_key=None,
        masked_share=1.0,
    )


def device() -> str:
    """Returns 'cuda' if there is a GPU, otherwise 'cpu'."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
