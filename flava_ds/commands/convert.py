"""`flava-ds convert`: exports a run's weights, or imports those of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from flava_ds.checkpoints import files
from flava_ds.commands.local_path import local_path
from flava_ds.commands.runs import require_run
from flava_ds.errors import UserError

RUN = (files.CONFIG, "environment.json")
"""Files of a run's folder."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    kinds = (
        "hf, safetensors: a run or a checkpoint, also by URL; "
        "flava_ds: a folder of Hugging Face or open_clip, or a file of open_clip, a ViT or BEiT"
    )
    command.add_argument("source", metavar="FROM", help=kinds)
    command.add_argument(
        "--to", choices=["hf", "safetensors", "flava_ds"], required=True, help="the format to write"
    )
    command.add_argument(
        "--average",
        metavar="STATE",
        help="of a run, write the running average of a training state: ema, dino.teacher; the weights it "
        "does not follow are the run's",
    )
    command.add_argument(
        "out", metavar="OUT", type=local_path, help="the folder to write; safetensors: the file"
    )


def check_place(source: Path, out: Path, to: str) -> None:
    """Raises UserError where writing would overwrite what is read, a run, a part of its checkpoints, a model
    of the other program, or files that no conversion has written.
    """
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: is what is read, which would be overwritten; name another place")
    if (out / files.FOLDER).is_dir() or all((out / name).is_file() for name in RUN):
        raise UserError(f"{out}: is a run, whose config.json would be overwritten; name another place")
    if (out / files.CONFIG).is_file():
        from flava_ds.hf.files import read_json

        theirs = "model_type" in read_json(out / files.CONFIG)
        if theirs != (to == "hf"):
            kind = "Hugging Face" if theirs else "flava_ds"
            raise UserError(f"{out}: has a model of {kind}, which would be overwritten; name another place")
    for folder in (out.resolve(), out.resolve().parent):
        whole = all((folder / name).is_file() for name in (files.MANIFEST, files.STATE))
        if whole or ((folder / files.LATEST).is_file() and any(folder.glob("step_*"))):
            raise UserError(f"{out}: {folder} belongs to a run's checkpoints; name another place")
    if to == "safetensors":
        if out.is_file() and out.suffix != ".safetensors":
            raise UserError(
                f"{out}: is a file that would be overwritten, and no .safetensors file; name another place"
            )
    elif out.is_dir():
        from flava_ds.checkpoints.reader import WEIGHTS

        own = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if own and not {WEIGHTS, files.CONFIG}.intersection(own):
            raise UserError(
                f"{out}: is a folder with other files, e.g. {own[0]}; name a new one, an empty one or one "
                "that was converted before"
            )


def run(options: argparse.Namespace) -> int:
    """Writes the converted weights and prints where they are; returns the exit status."""
    source = Path(options.source)
    check_place(source, options.out, options.to)
    if options.average is not None and options.to == "flava_ds":
        raise UserError("--average: only runs have averages; leave it out, or give --to hf or safetensors")
    if options.to == "safetensors":
        from flava_ds.checkpoints.reader import write_weights

        write_weights(options.source, options.out, options.average)
    elif options.to == "hf":
        if "://" not in options.source:
            require_run(source)
        from flava_ds.hf.export_weights import export

        export(options.source, options.out, options.average)
    else:
        from flava_ds.hf.convert import convert_file, convert_folder

        (convert_folder if source.is_dir() else convert_file)(source, options.out)
    print(options.out)
    return 0
