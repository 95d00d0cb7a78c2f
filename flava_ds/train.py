"""What a launcher starts on every rank: `deepspeed --module flava_ds.train RECIPE overrides...`."""

from __future__ import annotations

import os
import sys
import time
import traceback

from flava_ds.errors import UserError

CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says when another rank has ended."""
GRACE_S = 1.0
"""How long rank 0, which keeps the store that the ranks ask who speaks, outlives its own last line."""


def main(arguments: list[str] | None = None) -> int:
    """Resolves the recipe, builds the trainer and fits it; returns the exit status: 0, 2 for what the user can mend, 128 + signal when stopped.

    One rank of a job says why it ends: the others, which lose their connection to it, stay silent.
    """
    words = sys.argv[1:] if arguments is None else arguments
    words = [word for word in words if not word.startswith("--local_rank") and word != "--no_local_rank"]  # the deepspeed launcher appends these
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return run(words)
    except UserError as error:
        return end(str(error), 2, debug, on_all_ranks=getattr(error, "on_all_ranks", False))
    except RuntimeError as error:
        if not any(words in str(error) for words in CONNECTION_LOST):
            raise
        return end("the connection to another rank was lost: it ended without a word, perhaps killed for lack of memory; start again to go on", 1, debug)
    finally:
        if "torch" in sys.modules:
            from flava_ds.training.distributed import stop
            from flava_ds.training.run_lock import release_all

            release_all()
            stop()


def end(message: str, status: int, debug: bool, on_all_ranks: bool = False) -> int:
    """Prints the job's last line, unless another rank does, and returns the job's exit status."""
    from flava_ds.training.distributed import agree_on_end

    rank = os.environ.get("RANK", "0")
    speaks, status = (rank == "0", status) if on_all_ranks else agree_on_end(status)
    if debug:
        traceback.print_exc()
    if speaks:
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        if rank == "0" and os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(GRACE_S)
    return status


def run(words: list[str]) -> int:
    """Runs one rank to its end.

    Raises: UserError when no recipe is given, or the run cannot be built or go on.
    """
    from flava_ds.recipes import RECIPES, resolve

    if not words or words[0].startswith("-"):
        raise UserError(f"the first argument must be a recipe ({', '.join(RECIPES)}) or the path of a config.json")
    config = resolve(words[0], words[1:])
    from flava_ds.build import build

    return build(config).fit()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # everything is closed; a gloo thread that wants the interpreter while it shuts down would abort the process now and then
