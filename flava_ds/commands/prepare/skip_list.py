"""`flava-ds prepare skiplist`: samples that training leaves out."""

from __future__ import annotations

import argparse

from flava_ds.commands.local_path import local_path, report_path
from flava_ds.errors import UserError


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    action.add_argument(
        "places", metavar="IMAGES", nargs="*", help="folders of images, or shards; none lists only keys"
    )
    action.add_argument(
        "--from-quarantine",
        type=local_path,
        metavar="RUN",
        help="instead of images: the unusable samples that a run has met",
    )
    action.add_argument(
        "--out", type=report_path, required=True, help="the list to write; lists can be joined with cat"
    )
    action.add_argument(
        "--split-file",
        type=local_path,
        help="Karpathy's dataset_coco.json or dataset_flickr30k.json: only images of --splits",
    )
    action.add_argument("--splits", nargs="+", default=["test"], help="splits in that file (default: test)")
    action.add_argument(
        "--bits", type=int, default=10, help="bits of 64 in which a copy's hash may differ (default: 10)"
    )


def run(options: argparse.Namespace) -> int:
    """Writes a skip list."""
    if options.from_quarantine:
        return quarantined(options)
    if not (options.places or options.split_file):
        raise UserError("prepare skiplist: give folders of IMAGES, or --split-file for a list of keys")
    if not 0 <= options.bits <= 31:
        raise UserError(f"--bits {options.bits}: use 0 to 31; unrelated images differ in about 32")
    from flava_ds.prepare.skip_list import write_skip_list

    entries = write_skip_list(
        options.places, options.out, split_file=options.split_file, splits=options.splits, bits=options.bits
    )
    print(f"{options.out}: {entries:,} entries; set skip_list of each source to it")
    return 0


def quarantined(options: argparse.Namespace) -> int:
    """Converts a run's quarantine list to a skip list."""
    if options.places or options.split_file:
        raise UserError(
            "prepare skiplist: --from-quarantine takes neither IMAGES nor --split-file; join lists with cat"
        )
    from collections import Counter

    from flava_ds.data.quarantine import read_quarantine, skip_list_lines
    from flava_ds.storage.atomic import write_whole
    from flava_ds.storage.faults import counted

    entries = read_quarantine(options.from_quarantine)
    lines = skip_list_lines(entries)
    write_whole(options.out, "".join(line + "\n" for line in lines))
    reasons = counted(Counter(entry["reason"] for entry in entries if entry["key"]))
    print(f"{options.out}: {len(lines):,} entries ({reasons}); set skip_list of each source to it")
    for entry in entries:
        if not entry["key"]:
            print(f"not in the list, as it is no sample: {entry['reason']} {entry['shard']}")
    return 0
