"""`flava-ds prepare scenes`: scenes of the demo's drawings as shards."""

from __future__ import annotations

import argparse

from flava_ds.commands.local_path import local_path


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    action.add_argument("out", metavar="OUT", type=local_path, help="the folder to write shards to")
    action.add_argument("--split", default="train", help="train (default), unseen_style or unseen_concepts")
    action.add_argument("--scenes", type=int, default=8000, help="how many (default: 8000)")
    action.add_argument(
        "--detector", default="demo", metavar="FILE", help="the detector's weights (default: demo), or none"
    )


def run(options: argparse.Namespace) -> int:
    """Writes scenes as shards."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.demo.scene_shards import write_scenes
    from flava_ds.regions.detector import load_detector

    detector = None if options.detector == "none" else load_detector(options.detector)
    counts = write_scenes(
        unpack(),
        options.out,
        detector,
        split=options.split,
        count=options.scenes,
        tell=lambda line: print(line, flush=True),
    )
    print(f"{options.out}: {counts.samples:,} scenes; set caption_key to captions")
    return 0
