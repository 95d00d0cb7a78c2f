"""`flava-ds demo`: trains, evaluates, exports and reports a small FLAVA on the built-in data."""

from __future__ import annotations

import argparse


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    length = command.add_mutually_exclusive_group()
    length.add_argument(
        "--work",
        default="ten-minutes",
        help="fixed work: two-minutes, ten-minutes (default) or hour, on two cores with bf16 instructions",
    )
    length.add_argument(
        "--minutes", type=float, help="instead of fixed work, as many steps as fit; without quality gates"
    )
    command.add_argument(
        "--codebook",
        choices=["committed", "train"],
        default="committed",
        help="train the image codebook first (default: committed)",
    )
    command.add_argument("--ranks", type=int, default=2, help="processes (default: 2)")
    command.add_argument(
        "--new", action="store_true", help="start a new demo even if an earlier one was interrupted"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the demo, from unpacking the data to the report; returns the exit status."""
    from flava_ds.demo import run as demo
    from flava_ds.demo.state import Plan
    from flava_ds.watching.packages import check_extra

    check_extra("demo")
    work = None if options.minutes is not None else options.work
    plan = Plan(work=work, minutes=options.minutes, train_codebook=options.codebook == "train")
    return demo.run(plan, ranks=options.ranks, new=options.new)
