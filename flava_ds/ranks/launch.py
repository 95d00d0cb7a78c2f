"""Builds the command that starts a run: one process, or DeepSpeed's launcher with one process per device.

Every launcher starts flava_ds.train.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from flava_ds.config import Config
from flava_ds.config.encoders import DETECTORS
from flava_ds.errors import ConfigError, DataError, UserError, number_of
from flava_ds.ranks import safe_path
from flava_ds.ranks.stop_signals import STOP_SIGNALS
from flava_ds.storage.shards import list_streamed, unexpanded

MODULE = "flava_ds.train"
LAUNCHER = "flava_ds.ranks.deepspeed_launcher"
SUPERVISOR = "flava_ds.ranks.supervise"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command line, and the environment variables to add for it."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Formats the command for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])

    def replace_process(self) -> None:
        """Replaces this process by the command; does not return."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvpe(self.arguments[0], self.arguments, {**os.environ, **self.environment})

    def wait(self, log: Path | None = None) -> int:
        """Runs the command to its end, passing stop signals on; returns its exit status, 128 + signal
        where one ended it or asked this process to stop. What it says is appended to `log`, if that is given.

        On Ctrl-C a terminal has sent SIGINT to the command, too; StopRequest takes both for one.
        """
        asked: list[int] = []

        def note(number: int, _: object) -> None:
            asked.append(number)
            running.send_signal(number)

        sys.stdout.flush()
        with nullcontext() if log is None else log.open("ab") as file:
            told = None if file is None else subprocess.STDOUT
            environment = {**os.environ, **self.environment}
            running = subprocess.Popen(self.arguments, env=environment, stdout=file, stderr=told)
        before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
        try:
            status = running.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if asked:  # whatever the status: DeepSpeed's launcher over ssh ends with 1 then
            return 128 + asked[0]
        return status if status >= 0 else 128 - status


MOST_RANKS_PER_CORE = 16
"""More ranks per core only make sense in tests."""


def plan_launch(
    recipe: str, overrides: list[str], *, ranks: int, gpus: int, port: int | None = None, debug: bool = False,
    module: str = MODULE,
) -> Launch:  # fmt: skip
    """Builds the command that trains `recipe`, or starts another module, on `ranks` ranks of this machine.

    `port` is the rendezvous port; None takes a free one. DeepSpeed's launcher is silenced, because its output
    when a rank ends would bury the rank's own error. With `debug` it logs, and ranks show tracebacks.

    Raises: UserError when the machine cannot run so many ranks, or a single one would belong to others.
    """
    check_ranks(ranks, gpus)
    if debug:
        overrides = [*overrides, "--debug"]
    if ranks == 1:
        check_alone()
        return Launch(
            arguments=[sys.executable, "-m", module, recipe, *overrides],
            environment=environment_of(ranks, gpus),
        )
    port = free_port() if port is None else port
    launcher = [sys.executable, "-u", "-m", LAUNCHER, f"--world_info={world_info(ranks, gpus)}"]
    launcher += ["--master_port", str(port), "--log_level", "info" if debug else "critical"]
    launcher += ["--module", module]
    return Launch(arguments=[*launcher, recipe, *overrides], environment=environment_of(ranks, gpus))


def plan_supervised(
    recipe: str, overrides: list[str], *, ranks: int, gpus: int, restarts: int, debug: bool = False
) -> Launch:
    """Builds the command that trains `recipe` and restarts all ranks from the latest checkpoint on failure.

    It restarts at most `restarts` times.

    Raises: UserError when the machine cannot run so many ranks.
    """
    check_ranks(ranks, gpus)
    if debug:
        overrides = [*overrides, "--debug"]
    supervisor = [sys.executable, "-m", SUPERVISOR, "--standalone"]
    supervisor += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return Launch(
        arguments=[*supervisor, "--module", MODULE, recipe, *overrides],
        environment=environment_of(ranks, gpus),
    )


def check_ranks(ranks: int, gpus: int) -> None:
    """Raises UserError for less than one rank, for more ranks than GPUs, or for too many ranks on CPUs."""
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: use at least 1")
    cores = len(os.sched_getaffinity(0))
    if not gpus and ranks > MOST_RANKS_PER_CORE * cores:
        raise UserError(
            f"--ranks {ranks}, but this machine has {number_of(cores, 'core')} and no GPU; use "
            f"--ranks {cores}, or at most {MOST_RANKS_PER_CORE * cores}"
        )
    if gpus and ranks > gpus:
        raise UserError(
            f"--ranks {ranks}, but this machine has {number_of(gpus, 'GPU')}; use --ranks {gpus}, or "
            "launchers/slurm.sbatch for several machines"
        )


def check_alone() -> None:
    """Raises UserError where variables of a launcher say that this process is one of several ranks: a single
    rank would take them for its own, and wait for the others.
    """
    for size, rank in (("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        if os.environ.get(size, "1") != "1":
            raise UserError(
                f"{size} is {os.environ[size]}: a launcher has started this process, or its shell, as one of "
                f"several ranks, but `flava-ds` starts its own; unset {size} and {rank}, or have the "
                f"launcher start {MODULE}"
            )


def environment_of(ranks: int, gpus: int) -> dict[str, str]:
    """Returns the environment variables of every rank; they keep imports out of the working directory."""
    return {**safe_path.ENVIRONMENT, **cpu_environment(ranks, gpus)}


def cpu_environment(ranks: int, gpus: int) -> dict[str, str]:
    """Returns the variables that select the CPU and divide the cores among ranks; none if there is a GPU."""
    if gpus:
        return {}
    cores = len(os.sched_getaffinity(0))
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // ranks))),
        "DS_ACCELERATOR": "cpu",
    }


def world_info(ranks: int, gpus: int) -> str:
    """Returns the devices of this machine's ranks as DeepSpeed's launcher reads them: the first that
    CUDA_VISIBLE_DEVICES names, or the first of all.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus else ""
    devices = visible.split(",")[:ranks] if visible else list(range(ranks))
    return base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()


def free_port() -> int:
    """Returns a TCP port that is free at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def count_gpus() -> int:
    """Returns the number of CUDA devices that torch can use. Imports torch, but initialises no device."""
    import torch

    return torch.cuda.device_count() if torch.backends.cuda.is_built() else 0


def check_batches(config: Config, ranks: int) -> None:
    """Raises UserError for less than one rank, ConfigError that names a source whose batch is not divisible
    over `ranks`.
    """
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: use at least 1")
    for name in config.drawn_sources:
        config.micro_batch_size(name, ranks)


def require_shards(name: str, shards: str, *, pipes: bool = False) -> None:
    """Raises DataError when a folder, file or pattern names no shards; `pipes` allows commands.

    The message names the source unless `name` is empty.
    """
    is_plain_path = not shards.endswith(".tar") and "{" not in shards and ":" not in shards
    if is_plain_path and not Path(shards).expanduser().exists():
        label = f"source '{name}': " if name else ""
        how = f" with --data.sources.{name}.shards" if name else ""
        how += unexpanded(shards)
        raise DataError(f"{label}no folder or .tar at '{shards}'; give the location of the shards{how}")
    list_streamed(shards, name, pipes=pipes)


def provide_demo_data(config: Config) -> None:
    """Unpacks the built-in data set if a source expects it at the usual place and it is not there, and adds
    its scenes if a source reads those.
    """
    from flava_ds.demo.dataset import unpack
    from flava_ds.recipes.demo import DATA, SCENES

    folders = [folder for source in config.data.sources.values() for folder in Path(source.shards).parents]
    if DATA in folders and not DATA.exists():
        try:
            unpack(DATA)
        except OSError as error:
            raise DataError(
                f"the demo's data cannot be unpacked into {DATA.absolute()} ({error.strerror}); start in a "
                "folder that can be written"
            ) from error
    if SCENES in (Path(source.shards) for source in config.data.sources.values()):
        from flava_ds.demo.scene_shards import provide_scenes

        provide_scenes(DATA, SCENES)


def check_inputs(config: Config) -> None:
    """Checks that the inputs of a run and the packages that it needs exist, before starting anything.

    Raises: ConfigError or DataError that names the missing package, or the missing or empty folder or file.
    """
    if not config.data.sources:
        raise ConfigError("data.sources is empty: a run needs at least one source")
    from flava_ds.data.tokenizer import vocabulary_file
    from flava_ds.training.engine_config import read_settings
    from flava_ds.watching.packages import check_packages

    check_packages(config)
    read_settings(config.engine.deepspeed_config)
    vocabulary_file(config.data.vocabulary)
    provide_demo_data(config)
    for name, source in config.drawn_sources.items():
        if source.reader is None:
            require_shards(name, source.shards, pipes=source.reading == "stream" and source.allow_code)
        if source.skip_list is not None and not Path(source.skip_list).expanduser().is_file():
            raise DataError(
                f"source '{name}': skip_list '{source.skip_list}': no such file; make one with `flava-ds "
                "prepare skiplist`"
            )
    weights = config.codebook_weights
    if weights is None and config.computes_image_codes:
        raise ConfigError(
            "codebook_weights is not set, but image codes are computed on the device; give "
            "--codebook-weights FILE; `flava-ds codebook train SHARDS --recipe RECIPE --out FILE` makes one"
        )
    if weights not in (None, "random") and not Path(weights).exists():
        raise ConfigError(
            f"codebook_weights '{weights}': no such file; train one with `flava-ds codebook train SHARDS "
            f"--out {shlex.quote(str(weights))}`"
        )
    detector = getattr(config.model, "detector", None)
    if detector not in (None, *DETECTORS) and not Path(detector).exists():
        raise ConfigError(
            f"model.detector '{detector}': no such file or folder; evaluations on images need it, so name a "
            f"detector's weights or {', '.join(DETECTORS)}, or leave it out"
        )
    initial = config.initial_weights
    if initial is not None and "://" not in initial and not Path(initial).exists():  # ranks look for a URL
        raise ConfigError(f"initial_weights '{initial}': no such file or folder")
