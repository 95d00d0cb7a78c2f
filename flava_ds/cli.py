"""The `flava-ds` command. Subcommands import heavy modules themselves, so that --help is fast."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from flava_ds.commands import ablation, codebook, compare, convert, demo, evaluate, laws, prepare, sweep
from flava_ds.commands import plan as plan_command
from flava_ds.commands import train as train_command
from flava_ds.commands.local_path import local_path
from flava_ds.commands.runs import require_run
from flava_ds.commands.standard_output import reader_is_gone
from flava_ds.errors import UserError, did_you_mean, nearest_choice
from flava_ds.plain_text import one_line
from flava_ds.processes import complete_streams, leave
from flava_ds.ranks.safe_path import leave_out_working_directory
from flava_ds.storage.atomic import NO_ROOM
from flava_ds.watching.packages import missing_package, version


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns 0, 1 for a failure at run time, or 2 for errors that the user can fix."""
    if arguments is None:
        complete_streams()
        leave_out_working_directory()
    try:
        return run_command(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # of --help in Python 3.11.2: later ones ignore it
        if not reader_is_gone():
            raise
        return 0
    finally:
        reader_is_gone()  # after --help, too


def run_command(words: list[str]) -> int:
    """Runs the subcommand of a command line."""
    parser, takes_overrides = build_parser()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    if broken := next((word for word in words if not _is_text(word)), None):
        parser.error(f"{broken!r:.200} is not text that a name or a value can have")
    if words[0].startswith("--") and words[0] not in parser.options():
        meant = did_you_mean(words[0], parser.options())
        place = f"; options stand behind the command: flava-ds COMMAND {words[0]}"
        parser.error(f"unknown argument {words[0]}{meant or place}")
    options, rest = parser.parse_known_args(words)
    overrides = (rest,) if options.run in takes_overrides else ()
    if rest and not overrides:
        known = did_you_mean(rest[0], options.parser.options())
        options.parser.error(f"unknown argument {rest[0]}{known}")
    try:
        if places := getattr(options, "plugin", None):
            from flava_ds.recipes.outside import import_plugins

            import_plugins(places)
        status = options.run(options, *overrides) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as error:
        return fail(str(error) or "interrupted", options.debug, status=130)
    except UserError as error:
        if error.on_all_ranks and os.environ.get("RANK", "0") != "0":
            return 2  # the first one says it
        return fail(str(error), options.debug, status=2)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            return 128 + signal.SIGPIPE
        if isinstance(error, OSError) and error.filename is not None:
            return fail(str(UserError.of_system(error)), options.debug, status=2)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            message = f"standard output, or a file, cannot be written ({error.strerror}); make room"
            return fail(message, options.debug, status=2)
        if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)):
            return fail(missing, options.debug, status=2)
        message = f"{type(error).__name__}: {error}; run again with --debug for the traceback"
        return fail(message, options.debug, status=1)


def _is_text(word: str) -> bool:
    """Returns whether a word of a command line can be a name or value: half a surrogate pair cannot."""
    try:
        word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def fail(message: str, debug: bool, *, status: int) -> int:
    """Prints one line, after the traceback with `debug`, and returns `status`."""
    if debug:
        traceback.print_exc()
    print(f"error: {one_line(message)}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the error, suggesting a choice if one is misspelled, and exits with status 2."""
        self.exit(2, f"error: {one_line(message + nearest_choice(message))}; see `{self.prog} --help`\n")

    def options(self) -> list[str]:
        """Returns the names of all options."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]


EPILOG = "`flava-ds COMMAND --help` has details; `flava-ds train flava_debug` is a first run, in seconds."


def build_parser() -> tuple[Parser, set[Callable[..., Any]]]:
    """Returns the parser, and the subcommands that accept configuration overrides."""
    parser = Parser(
        prog="flava-ds", description="FLAVA pre-training at scale.", epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"flava_ds {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., Any], help: str, **settings: Any) -> Parser:
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False, **settings)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run, parser=command)
        return command

    add_run_commands(add)
    add_scaling_commands(add)
    add_data_commands(add)
    return parser, {train, show_config, codebook.run_train, plan}


def add_run_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds demo, ablation, compare, train, config, evaluate, report and convert."""
    demo.add_arguments(
        add("demo", demo.run, "train, evaluate, export and report a small FLAVA on the built-in data")
    )
    ablation.add_arguments(
        add("ablation", ablation.run, "run the paper's ablation at the demo's size, and judge its orderings")
    )
    compare.add_arguments(
        add("compare", compare.run, "train every family's demo recipe for equal FLOPs, and compare them")
    )
    add_training(add)
    command = add("evaluate", evaluate.run, "evaluate a run, a checkpoint or a Hugging Face folder on tasks")
    evaluate.add_arguments(command)
    add_plugin(command)
    command = add("report", report, "write a run's report as one HTML page")
    command.add_argument("run_path", metavar="RUN", type=local_path, help="a run's folder")
    command.add_argument("--out", metavar="FILE", type=local_path, help="the page (default: RUN/report.html)")
    add_plugin(command)
    command = add(
        "convert",
        convert.run,
        "export a run's weights, or convert models of Hugging Face, DINO or timm to initial_weights",
    )
    convert.add_arguments(command)
    add_plugin(command)


def add_training(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds train, config and plan, which accept a recipe and fields of its configuration."""
    overrides = (
        "then any field of the configuration, e.g. --training.total-steps 100 --data.sources.pmd.shards "
        "DIR; RECIPE --help lists them"
    )
    command = add(
        "train",
        train,
        "train a recipe, on one process or through the deepspeed launcher",
        epilog=overrides,
        add_help=False,
    )
    add_recipe(command, trains=True)
    train_command.add_arguments(command)
    add_plugin(command)
    command = add(
        "config", show_config, "print the resolved configuration as JSON", epilog=overrides, add_help=False
    )
    add_recipe(command)
    command.add_argument(
        "--reference",
        action="store_true",
        help="print every field of every section and variant instead, as Markdown",
    )
    command.add_argument(
        "--check-inputs",
        action="store_true",
        help="look for what one run reads too, as `flava-ds train` does, and unpack the demo's data",
    )
    command.add_argument(
        "--ranks",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="refuse batches of one run that cannot be divided among N ranks on any machines; can be "
        "repeated",
    )
    add_plugin(command)
    command = add(
        "plan",
        plan,
        "forecast memory, time and cost of a recipe on GPUs that need not be there",
        epilog=overrides,
        add_help=False,
    )
    add_recipe(command)
    plan_command.add_arguments(command)
    add_plugin(command)


def add_recipe(command: argparse.ArgumentParser, *, trains: bool = False) -> None:
    """Adds the recipe, and a --help that also lists the recipe's fields; `train` takes sequences, too."""
    recipes = (
        "demo, flava_tiny, flava_base, flava_large, flava_debug, dino_base, mim_base, mlm_base, demo_simclr, "
        "demo_dino, demo_mim, demo_mlm, demo_generate, clip_base, demo_clip, bert_base, demo_bert, "
        "vilt_base, demo_vilt, simvlm_base, demo_simvlm, align_base, demo_align, albef_base, demo_albef, "
        "uniter_base, demo_uniter, visualbert_base, demo_visualbert, vinvl_base, demo_vinvl, vlbert_base, "
        "demo_vlbert, lxmert_base, demo_lxmert, vilbert_base, demo_vilbert, unit_base, demo_unit, "
        "ablation/ROW, FILE.py:FUNCTION, a FILE.yaml or .json with `base: RECIPE` and what differs, or a "
        "run's config.json"
    )
    if trains:
        recipes += "; several in a row: flava_base_full, flava_base_full/mim, flava_base_full/released, "
        recipes += "demo_full, ablation/flava"
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help=recipes)
    command.add_argument(
        "-h", "--help", action="store_true", help="this text; after a recipe, every field with its value"
    )
    command.set_defaults(print_help=command.print_help)


def add_plugin(command: argparse.ArgumentParser) -> None:
    """Adds --plugin, for configurations that name classes in the user's own code."""
    help = "import your own file or module first, if a config.json names its classes; can be repeated"
    command.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help=help)


def add_scaling_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds sweep and laws."""
    command = add("sweep", sweep.run, "plan, run, continue and compare the runs of a sweep")
    sweep.add_arguments(command)
    add_plugin(command)
    laws.add_arguments(add("laws", laws.run, "fit scaling laws to a sweep or a table of runs"))


def add_data_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds codebook and prepare."""
    codebook.add_actions(
        add("codebook", codebook.run_train, "train an image codebook, or store the codes of shards")
    )
    purpose = "index, check and convert data, and list samples that a run must not see"
    prepare.add_actions(add("prepare", prepare.index.run, purpose))


def train(options: argparse.Namespace, overrides: list[str]) -> int:
    """Starts a run, or rehearses it. The stages of a sequence run one after the other, below this process."""
    from flava_ds.commands import stages as stages_command
    from flava_ds.recipes import load_sequence

    if (sequence := load_sequence(options.recipe)) is not None:
        if options.help:
            print(stages_command.help_of(sequence))
            return 0
        return stages_command.train(sequence, options, overrides)
    config = resolve_or_help(options, overrides)
    return 0 if config is None else train_command.run(config, options, overrides)


def show_config(options: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the resolved configuration, or the reference of all fields."""
    if options.reference:
        if options.recipe is not None or overrides:
            words = " ".join(filter(None, [options.recipe, *overrides]))
            raise UserError(f"--reference does not depend on a recipe; leave '{words}' out")
        from flava_ds.config.reference import reference

        print(reference(), end="")
        return 0
    from flava_ds.config import to_dict
    from flava_ds.recipes import load_sequence

    checks = options.check_inputs or options.ranks
    if not checks and (sequence := load_sequence(options.recipe)) is not None:
        from flava_ds.commands.stages import described, help_of

        print(help_of(sequence) if options.help else described(sequence, overrides))
        return 0
    config = resolve_or_help(options, overrides)
    if config is None:
        return 0
    if checks:
        from flava_ds.ranks.launch import check_batches, check_inputs

        for ranks in options.ranks:
            check_batches(config, ranks)
        if options.check_inputs:
            check_inputs(config)
    print(json.dumps(to_dict(config), indent=2))
    return 0


def plan(options: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what a run would need and how long it would take."""
    if options.help or options.recipe is None:
        resolve_or_help(options, overrides)
        return 0
    return plan_command.run(options, overrides, lambda words: resolve_or_help(options, words))


def resolve_or_help(options: argparse.Namespace, overrides: list[str]) -> Any:
    """Returns the configuration, or None after printing the requested help."""
    from flava_ds import recipes

    if options.recipe is None:
        if options.help:
            options.print_help()
            return None
        raise UserError(f"RECIPE is missing; choose one of {', '.join(recipes.RECIPES)}")
    beside = [name.removeprefix("--") for name in options.parser.options()]
    return recipes.resolve(options.recipe, [*overrides, "--help"] if options.help else overrides, beside)


def report(options: argparse.Namespace) -> int:
    """Writes a run's report and prints its path. Raises: UserError for a checkpoint, which has no log."""
    require_run(options.run_path)
    run = options.run_path.absolute().parents[1]
    if options.run_path.absolute().parent.name == "checkpoints" and (run / "log.jsonl").is_file():
        raise UserError(f"{options.run_path}: is a checkpoint; give the run, {run}")
    from flava_ds.demo.evaluation.held_out import held_out_of
    from flava_ds.report.page import write_report

    print(write_report(options.run_path, held_out_of(options.run_path), options.out))
    return 0


if __name__ == "__main__":
    status = main()
    if "WORLD_SIZE" in os.environ:  # one of a launcher's ranks
        leave(status)
    sys.exit(status)
