"""What a launcher starts on every rank: `deepspeed --module flava_ds.train RECIPE overrides...`."""

from __future__ import annotations

import os
import sys
import traceback

from flava_ds.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Resolves the recipe, builds the trainer and fits it; returns the exit status: 0, 2 for what the user can mend, 128 + signal when stopped."""
    words = sys.argv[1:] if arguments is None else arguments
    words = [word for word in words if not word.startswith("--local_rank") and word != "--no_local_rank"]  # the deepspeed launcher appends these
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return run(words)
    except UserError as error:
        if debug:
            traceback.print_exc()
        if os.environ.get("RANK", "0") == "0" or not getattr(error, "on_all_ranks", False):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """Runs one rank to its end.

    Raises: UserError when no recipe is given, or the run cannot be built or go on.
    """
    from flava_ds.recipes import RECIPES, resolve

    if not words or words[0].startswith("-"):
        raise UserError(f"the first argument must be a recipe ({', '.join(RECIPES)}) or the path of a config.json")
    config = resolve(words[0], words[1:])
    from flava_ds.build import build
    from flava_ds.training.distributed import stop

    try:
        return build(config).fit()
    finally:
        stop()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # everything is closed; a gloo thread that wants the interpreter while it shuts down would abort the process now and then
