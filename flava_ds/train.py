"""The module that launchers start on every rank: `deepspeed --module flava_ds.train RECIPE overrides...`."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress

from flava_ds.errors import UserError
from flava_ds.plain_text import one_line
from flava_ds.processes import complete_streams, leave
from flava_ds.ranks import launcher_variables, orphans
from flava_ds.ranks.safe_path import leave_out_working_directory
from flava_ds.watching.packages import missing_package

UNMET_S = 2.0
"""How much longer than the rank before it a rank of a machine waits until it tells an error from before they
met; the launcher ends it while it waits, once the one that has told it is gone.
"""
NO_THREAD = "can't start new thread"
"""What Python says of a limit of threads, which RuntimeError alone does not tell."""
LEAVE_S = 60.0
"""How long a rank that ends with an error may take to release its process group and loader processes."""


def main(arguments: list[str] | None = None, take: Callable[[list[str]], int] | None = None) -> int:
    """Resolves the recipe, builds the trainer and fits it; or does what `take` does with the words.

    Returns 0, 2 for errors that the user can fix, or 128 + signal when stopped. Only one rank of a job
    reports why it ends; the others, which lose their connection to it, stay silent.
    """
    if arguments is None:
        complete_streams()
        leave_out_working_directory()
        orphans.watch()
    words = sys.argv[1:] if arguments is None else arguments
    # the deepspeed launcher adds these
    words = [word for word in words if not word.startswith("--local_rank") and word != "--no_local_rank"]
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        # stack traces of lost connections would bury the message of the rank that knows the reason
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with ExitStack() as leaving:
        try:
            try:
                if arguments is None:
                    launcher_variables.complete()  # before the first error, which only one rank reports
                return (take or run)(words)
            finally:
                leave_folder()
        except KeyboardInterrupt:  # before training listens to signals; later ones save first
            return end("interrupted", 130, debug, leaving)
        except UserError as error:
            return end(str(error), 2, debug, leaving, on_all_ranks=error.on_all_ranks)
        except ModuleNotFoundError as error:
            if (missing := missing_package(error)) is None:
                tell_end()
                raise
            return end(missing, 2, debug, leaving)
        except OSError as error:
            if error.filename is None:
                tell_end()
                raise
            return end(str(UserError.of_system(error)), 2, debug, leaving)
        except RuntimeError as error:
            if failed_elsewhere(error):
                from flava_ds.ranks.distributed import keep_store

                keep_store()
                leave_in_time(2, leaving)
                return 2
            if (told := explain(error)) is None:
                tell_end()
                raise
            return end(told, 1, debug, leaving)
        except Exception:
            tell_end()
            raise
        finally:
            if "torch" in sys.modules:
                from flava_ds.ranks.distributed import stop

                stop()


def leave_folder() -> None:
    """Releases the run's folder, before this rank waits for others: the launcher may end it while it does."""
    if "torch" in sys.modules:  # otherwise it has not come so far
        from flava_ds.ranks.run_lock import release_all

        release_all()


def explain(error: RuntimeError) -> str | None:
    """Names the ranks that a failed collective waited for, or why the kernels that FLAVA_KERNELS=triton asks
    for cannot run, or the limit that a thread has met; None for other kinds of errors.
    """
    if str(error) == NO_THREAD:
        return (
            "no further thread can be started; raise the limits of processes and memory (ulimit -u, -v, or a "
            "container's limit of pids)"
        )
    from flava_kernels.dispatch import UnsupportedInputError

    from flava_ds.ranks import roll_call

    return str(error) if isinstance(error, UnsupportedInputError) else roll_call.explain(error)


def end(message: str, status: int, debug: bool, leaving: ExitStack, on_all_ranks: bool = False) -> int:
    """Prints the job's last line, unless another rank does, and returns the job's exit status."""
    from flava_ds.ranks.distributed import agree_on_end, have_met, keep_store

    rank = os.environ.get("RANK", "0")
    speaks, status = (rank == "0", status) if on_all_ranks else agree_on_end(status)
    if not speaks and not have_met() and status != 130:
        # the launcher ends all once one has ended, perhaps before the one that should speak has come so far
        with suppress(KeyboardInterrupt, ValueError):  # it may be no number, and that the error
            time.sleep(UNMET_S * int(os.environ["LOCAL_RANK"]))
        speaks = True
    if debug:
        traceback.print_exc()
    if speaks and message:
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    keep_store()
    leave_in_time(status, leaving)
    return status


def tell_end() -> None:
    """Tells the other ranks that this one ends by an error that nobody has expected, whose traceback follows;
    else they would say that it ended without a word.
    """
    if "torch" in sys.modules:  # otherwise it has not met them
        from flava_ds.ranks import distributed

        distributed.tell_end(1)


def failed_elsewhere(error: RuntimeError) -> bool:
    """Returns whether an error only reports that another rank failed, which then speaks for the job."""
    from flava_ds.ranks.distributed import RankFailedError

    return isinstance(error, RankFailedError)


def leave_in_time(status: int, leaving: ExitStack) -> None:
    """Gives this process LEAVE_S until `leaving` closes, in case a collective or worker hangs.

    Uses a timer that ends the process, not processes.within: it is the interpreter's own exit that may hang.
    """
    guard = threading.Timer(LEAVE_S, os._exit, (status,))
    guard.daemon = True
    with suppress(RuntimeError):  # at a limit of threads, too, it leaves, unguarded
        guard.start()
    leaving.callback(guard.cancel)


def run(words: list[str]) -> int:
    """Runs one rank to its end.

    Raises: UserError when no recipe is given, or the run cannot be built or continued.
    """
    from flava_ds.config.run_folder import check_home
    from flava_ds.recipes import RECIPES, WAYS, check_code, resolve
    from flava_ds.recipes.outside import import_plugins, take_plugins

    plugins, words = take_plugins(words)
    import_plugins(plugins)
    if not words or words[0].startswith("-"):
        raise UserError(f"the first argument must be a recipe ({', '.join(RECIPES)}), {WAYS}")
    config = resolve(words[0], words[1:])
    check_code(words[0], config, words[1:], plugins)
    check_home(words[0], config, words[1:])
    from flava_ds.build import build

    return build(config).fit()


if __name__ == "__main__":
    try:
        status = main()
    except Exception as unexpected:  # shown as the interpreter would, whose own exit may abort a rank
        sys.excepthook(type(unexpected), unexpected, unexpected.__traceback__)
        status = 1
    leave(status)
