"""`flava-ds prepare regions`: copies shards, with what a detector finds in each picture."""

from __future__ import annotations

import argparse

from flava_ds.commands.local_path import SHARDS, local_path


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    action.add_argument("shards", metavar="SHARDS", help=SHARDS)
    action.add_argument("out", metavar="OUT", type=local_path, help="the folder to write shards to")
    action.add_argument(
        "--detector",
        required=True,
        metavar="FILE",
        help="the detector's weights, or demo for the one of the demo's drawings",
    )


def run(options: argparse.Namespace) -> int:
    """Writes shards that carry regions."""
    from flava_ds.commands.codebook import device
    from flava_ds.data.regions import REGIONS_SUFFIX
    from flava_ds.prepare.regions import write_regions
    from flava_ds.ranks.launch import require_shards
    from flava_ds.regions.detector import load_detector

    require_shards("", options.shards)
    report = write_regions(
        options.shards,
        load_detector(options.detector),
        options.out,
        device=device(),
        on_shard=lambda shard, samples: print(f"{shard}: regions of {samples} pictures", flush=True),
    )
    print(
        f"{report}\nuse them: --data.sources.NAME.shards {options.out} "
        f"--data.sources.NAME.regions-key {REGIONS_SUFFIX}"
    )
    return 0
