"""`flava-ds prepare check`: looks shards over before a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flava_ds.commands.local_path import SHARDS, report_path
from flava_ds.errors import UserError
from flava_ds.plain_text import log_to_console

if TYPE_CHECKING:
    from flava_ds.prepare.check import Check


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    action.add_argument(
        "shards", metavar="SHARDS", nargs="+", help=f"{SHARDS}; several are looked over one after the other"
    )
    action.add_argument(
        "--caption-key", help="field of the .json that holds the captions (default: the .txt)"
    )
    action.add_argument(
        "--recipe",
        default="flava_base",
        help="recipe whose transforms, lengths and batch size to assume (default: flava_base)",
    )
    action.add_argument("--gpus", type=int, default=8, help="GPUs to feed (default: 8)")
    action.add_argument(
        "--images-per-second-per-gpu",
        type=float,
        default=1000.0,
        help="throughput of one GPU (default: 1000, about an H100 with FLAVA-base)",
    )
    action.add_argument(
        "--samples",
        type=int,
        default=10_000,
        help="samples to read, evenly spaced; 0 reads all (default: 10000)",
    )
    action.add_argument("--json", type=report_path, metavar="FILE", help="also write the results as JSON")
    action.add_argument(
        "--html", type=report_path, metavar="FILE", help="also write a page with charts and sample images"
    )


def run(options: argparse.Namespace) -> int:
    """Checks shards and prints the results, also as JSON and as a page if requested; returns 1 where a run of
    the recipe would end before or by its data.
    """
    from flava_ds.ranks.launch import require_shards

    for name in ("gpus", "images_per_second_per_gpu"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name):g}: use more than 0")
    if options.samples < 0:
        raise UserError(f"--samples {options.samples}: use at least 1, or 0 for all")
    if options.html and len(options.shards) > 1:
        raise UserError(f"--html is of one place; give one of {', '.join(options.shards)}")
    for shards in options.shards:
        require_shards("", shards)
    from flava_ds.prepare.check import Need, check_shards, describe

    log_to_console()
    need = Need(gpus=options.gpus, images_per_second_per_gpu=options.images_per_second_per_gpu)
    every = []
    for shards in options.shards:
        found = check_shards(
            shards, need, recipe=options.recipe, caption_key=options.caption_key, most=options.samples
        )
        print(describe(found), flush=True)
        every.append(found)
    if options.json:
        from flava_ds.storage.atomic import write_whole

        write_whole(options.json, as_json(every))
        print(options.json)
    if options.html:
        from flava_ds.prepare.check_page import write_page

        print(write_page(every[0], options.html))
    return int(any(found.stops for found in every))


def as_json(every: list[Check]) -> bytes:
    """Returns a check as JSON, or the list of several."""
    if len(every) == 1:
        return every[0].as_json()
    return b"[" + b",".join(found.as_json() for found in every) + b"]\n"
