"""`flava-ds prepare`: indexes and checks shards, converts corpora, and makes skip lists; a module each."""

from __future__ import annotations

import argparse

from flava_ds.commands.prepare import check, corpus, fetch, index, regions, scenes, skip_list
from flava_ds.prepare.corpora import CORPORA

ACTIONS = {
    "index": (
        index,
        "write an index next to every shard, or in the cache: its samples, their offsets, a checksum",
    ),
    "check": (
        check,
        "check shards before a run: counts, captions, duplicates, bad samples, speed of this machine",
    ),
    "skiplist": (skip_list, "list the images of an evaluation set, for SourceConfig.skip_list"),
    "regions": (regions, "copy shards, each picture with the regions that a detector finds in it"),
    "scenes": (scenes, "write scenes of the demo's drawings, with captions, labels and regions"),
    "fetch": (fetch, "get a small labelled set from a package, to evaluate on"),
}


def add_actions(command: argparse.ArgumentParser) -> None:
    """Adds the actions of `flava-ds prepare`, including one per corpus."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        action.set_defaults(parser=action)
        return action

    for name, (module, help) in ACTIONS.items():
        action = add(name, help)
        action.set_defaults(run=module.run)
        module.add_arguments(action)
    for found in CORPORA.values():
        action = add(found.name, f"{found.title}: to shards")
        action.set_defaults(run=corpus.run)
        corpus.add_arguments(action, found)
