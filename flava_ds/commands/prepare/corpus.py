"""`flava-ds prepare NAME`: a published corpus to shards."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flava_ds.commands.local_path import local_path
from flava_ds.errors import UserError
from flava_ds.plain_text import log_to_console
from flava_ds.prepare.corpora import Corpus

if TYPE_CHECKING:
    from flava_ds.prepare.shard_writer import Counts


def add_arguments(action: argparse.ArgumentParser, corpus: Corpus) -> None:
    """Adds the arguments."""
    action.set_defaults(corpus=corpus, images=None, shards=None, urls=None)
    action.add_argument(
        "annotations", metavar="ANNOTATIONS", type=local_path, nargs="*", help=corpus.annotations
    )
    action.add_argument(
        "--out",
        type=local_path,
        help="the folder to write shards to; a second call continues where the first stopped",
    )
    if corpus.kind == "pair":
        action.add_argument("--images", type=local_path, metavar="FOLDER", help="the folder of images")
        action.add_argument(
            "--shards",
            help="instead of annotations: img2dataset's output; counted, and filtered to --out if given",
        )
    if corpus.urls:
        action.add_argument(
            "--urls",
            type=local_path,
            metavar="FILE",
            help="write the filtered list for img2dataset instead of shards",
        )
    action.add_argument(
        "--samples-per-shard", type=int, default=10_000, help="maximum samples per shard (default: 10000)"
    )
    action.add_argument(
        "--mib-per-shard", type=int, default=1024, help="maximum MiB per shard (default: 1024)"
    )


def run(options: argparse.Namespace) -> int:
    """Converts, filters or lists one corpus, and prints its counts next to the paper's."""
    corpus: Corpus = options.corpus
    require_one_input(options)
    from flava_ds.prepare import convert

    log_to_console()
    limits = {
        "samples_per_shard": options.samples_per_shard,
        "bytes_per_shard": options.mib_per_shard * 2**20,
    }
    if options.urls:
        counts = convert.write_urls(corpus, options.annotations, options.urls)
        result = f"list for img2dataset: {options.urls}"
    elif options.shards:
        counts = convert.filter_shards(corpus, options.shards, options.out, **limits)
        result = f"nothing written; train on {options.shards} as it is, or filter it into --out"
        if options.out:
            result = f"shards: {options.out}"
    else:
        counts = convert.write_shards(corpus, options.annotations, options.images, options.out, **limits)
        key = "; the captions are in each .json: set caption_key to captions" if corpus.kind == "pair" else ""
        result = f"shards: {options.out}{key}"
    print(describe(corpus, counts))
    print(result)
    return 0


def describe(corpus: Corpus, counts: Counts) -> str:
    """Formats a conversion's counts next to the paper's, and the reasons for entries left out."""
    from flava_ds.storage.faults import counted

    unit = {"pair": "pairs", "image": "images", "text": "passages"}[corpus.kind]
    found = counts.samples if corpus.kind == "image" else counts.captions
    words = f"{counts.words / counts.captions:.1f}" if counts.captions else "-"
    rows = [("", unit, "words each"), ("found", f"{found:,}", words)]
    if corpus.pairs is not None:
        published = "paper, Table 2" if corpus.kind == "pair" else "published"
        rows.append((published, corpus.pairs, "-" if corpus.words is None else f"{corpus.words:.1f}"))
    lines = [
        f"{corpus.title}: {counts.samples:,} samples from {counts.entries:,} entries",
        *(f"  {a:<16}{b:>12}{c:>12}" for a, b, c in rows),
    ]
    return "\n".join([*lines, f"left out: {counted(counts.dropped)}"])


def require_one_input(options: argparse.Namespace) -> None:
    """Raises UserError unless there is exactly one input and one output."""
    name = options.corpus.name
    if bool(options.annotations) == bool(options.shards):
        other = ", or --shards" if options.corpus.kind == "pair" else ""
        raise UserError(
            f"prepare {name}: give the published annotations ({options.corpus.annotations}){other}"
        )
    if options.urls and (options.shards or options.out):
        raise UserError(
            f"prepare {name}: --urls writes a list from annotations; leave out --shards and --out"
        )
    if not (options.urls or options.shards or options.out):
        raise UserError(
            f"prepare {name}: give --out FOLDER{', or --urls FILE' if options.corpus.urls else ''}"
        )
    for option in ("samples_per_shard", "mib_per_shard"):
        if getattr(options, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(options, option)}: use at least 1")
