"""`flava-ds prepare index`: an index next to every shard."""

from __future__ import annotations

import argparse

from flava_ds.commands.local_path import SHARDS
from flava_ds.errors import UserError
from flava_ds.plain_text import log_to_console


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    action.add_argument(
        "shards",
        metavar="SHARDS",
        nargs="+",
        help=f"{SHARDS}, or a .txt that lists such entries; each local or a URL (s3, gs, http, hf)",
    )
    action.add_argument(
        "--no-checksum",
        action="store_true",
        help="read only the headers, as training does for shards without an index",
    )
    action.add_argument(
        "--verify", action="store_true", help="re-read shards that have a checksum, and compare"
    )
    action.add_argument("--processes", type=int, help="shards to index in parallel (default: one per core)")


def run(options: argparse.Namespace) -> int:
    """Indexes shards."""
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes {options.processes}: use at least 1")
    from flava_ds.prepare.index import build_indexes
    from flava_ds.ranks.launch import require_shards

    log_to_console()
    for shards in options.shards:
        require_shards("", shards)
    build_indexes(
        options.shards, checksum=not options.no_checksum, verify=options.verify, processes=options.processes
    )
    return 0
