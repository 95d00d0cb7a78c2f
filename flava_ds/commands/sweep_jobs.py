"""Runs a sweep's runs: one after another here or over a hostfile, asked of Optuna, or as a Slurm array."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from flava_ds.commands.sweep_runs import check_begin, words_of
from flava_ds.errors import CheckpointError, UserError
from flava_ds.ranks import launch
from flava_ds.ranks.endings import is_stop, last_words, output_lines

if TYPE_CHECKING:
    from flava_ds.scaling.spec import Spec
    from flava_ds.scaling.sweep import Sweep

LAUNCHERS = Path(__file__).parents[2] / "launchers"
FIRST_PORT = 29500
PORTS = 1000
LOST = re.compile(
    r"^pdsh@\S+: \S+: ssh exited with exit code (255|127)$|was not reachable via ssh"
    r"|bash: line \d+: \S*python\S*: No such"
)
"""What pdsh, DeepSpeed and a remote shell say of a machine that is gone or has no environment."""


def run_all(sweep: Sweep, spec: Spec | None, names: list[str], options: argparse.Namespace) -> int:
    """Runs what waits, then what Optuna asks for; returns 128 + signal when one asked it to
    stop, otherwise 0. A run that fails or is killed does not end the sweep.

    Raises: CheckpointError when another process runs this sweep.
    """
    from flava_ds.commands.sweep_search import asked
    from flava_ds.ranks.run_lock import RunLock

    lock = RunLock(sweep.folder, otherwise="give this sweep another --folder")
    lock.acquire()
    try:
        left = []
        for number, name in enumerate(names, start=1):
            where = f"run {number} of {len(names)}"
            if spec is not None and spec.asked is not None:  # numbered as the search has asked for them
                where = f"run {list(sweep.runs).index(name) + 1} of {spec.asked.runs}"
            status = run_one(sweep, name, where, options)
            if status is None:
                left.append(name)
            elif is_stop(status):
                return status
        for name in left:  # who trained there may have ended meanwhile
            if is_stop(status := run_one(sweep, name, "once more", options) or 0):
                return status
        if spec is None or spec.asked is None:
            return 0
        most = len(sweep.runs) + options.most - len(names) if options.most else spec.asked.runs
        while len(sweep.runs) < min(most, spec.asked.runs):
            if (grown := asked(sweep, spec)) is None:
                print(f"no run is left to ask for: the search has fewer points than {spec.asked.runs} runs")
                return 0
            sweep, name = grown
            where = f"run {len(sweep.runs)} of {spec.asked.runs}"
            if is_stop(status := run_one(sweep, name, where, options) or 0):
                return status
        return 0
    finally:
        lock.release()


def run_one(sweep: Sweep, name: str, where: str, options: argparse.Namespace) -> int | None:
    """Runs a run to its end and notes how it ended; returns its exit status, None if it runs elsewhere.

    Raises: ConfigError when the base was changed behind a finished run; UserError when the run has failed
    because a machine is lost, on which the next ones would fail too.
    """
    from flava_ds.scaling.sweep import FAILED

    print(f"{where}, {name}: {sweep.runs[name].place()}", flush=True)
    if (holder := runs_elsewhere(sweep.path_of(name))) is not None:
        print(f"  left alone: {holder}", flush=True)
        return None
    check_begin(sweep, options)
    log = sweep.log_of(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = command_of(sweep, name, options)
    start = sweep.begin(name)
    status = command.wait(log)
    own = sweep.end(name, status)
    said = own.get("reason") or f"{sweep.metric} {own['results'].get(sweep.metric, 'not logged')}"
    print(f"  {own['state']}: {said}", flush=True)
    if options.hostfile is not None and own["state"] == FAILED and (why := machine_lost(log, start)):
        raise UserError(
            f"{why}: no further run begins on these machines; mend {options.hostfile} or the machine "
            f"({log} has it all), and the same command goes on"
        )
    return status


def machine_lost(log: Path, start: int) -> str:
    """Returns what the launcher over ssh said of a machine that it could not reach, or where it found no
    Python, from byte `start` of a run's log on; empty if it said nothing like that.
    """
    return next((line for line in output_lines(log, start) if LOST.search(line)), "")


def check_hosts(sweep: Sweep, name: str, options: argparse.Namespace) -> None:
    """Raises UserError when the launcher refuses a run on the machines of --hostfile, as a dry run tells."""
    command = command_of(sweep, name, options)
    done = subprocess.run(
        [*command.arguments, "--dry-run"],
        env={**os.environ, **command.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(last_words(done.stderr.splitlines()) or f"{command}: exit status {done.returncode}")


def runs_elsewhere(run_path: Path) -> str | None:
    """Returns who trains in a folder, if anybody does."""
    from flava_ds.ranks.lock_files import NAME
    from flava_ds.ranks.run_lock import RunLock

    if not (run_path / NAME).exists():
        return None
    lock = RunLock(run_path)
    try:
        lock.acquire()
    except CheckpointError as error:
        return str(error)
    lock.release()
    return None


def command_words(sweep: Sweep, name: str) -> list[str]:
    """Returns what `flava-ds train` is given for a run after the sweep's base."""
    return [*(f"--plugin={place}" for place in sweep.plugins), *words_of(sweep, sweep.runs[name])]


def command_of(sweep: Sweep, name: str, options: argparse.Namespace) -> launch.Launch:
    """Returns the command of a run. Raises: UserError."""
    words = command_words(sweep, name)
    if options.hostfile is not None:
        script = launcher("deepspeed.sh")
        # the script calls flava-ds and deepspeed, which lie beside this Python
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        # sweeps that share a first machine must not meet at one port
        port = FIRST_PORT + zlib.crc32(str(sweep.path_of(name).absolute()).encode()) % PORTS
        variables = {"HOSTFILE": str(options.hostfile.absolute()), "PATH": path}
        variables["PORT"] = os.environ.get("PORT", str(port))
        return launch.Launch(arguments=["bash", str(script), sweep.base, *words], environment=variables)
    gpus = launch.count_gpus()
    ranks = options.ranks or max(1, gpus)
    return launch.plan_launch(sweep.base, words, ranks=ranks, gpus=gpus, debug=options.debug)


def launcher(name: str) -> Path:
    """Returns the path of a launcher's script. Raises: UserError outside of a checkout."""
    path = LAUNCHERS / name
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; launchers come with a clone of the repository, not with the package: "
            "install one by `pip install -e .`, and run this again"
        )
    return path


def write_array(sweep: Sweep, names: list[str], options: argparse.Namespace) -> str:
    """Writes the script of a Slurm array, one task for each waiting run; returns how to submit it.

    Its settings and its way to start, stop and requeue are those of launchers/slurm.sbatch.

    Raises: UserError outside of a checkout.
    """
    from flava_ds.storage.atomic import write_whole

    script, folder = launcher("slurm.sbatch"), sweep.folder.absolute()
    dropped = ("--nodes", "--job-name", "--output")
    settings = [
        line
        for line in script.read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH") and not line.split()[1].startswith(dropped)
    ]
    limit = f"%{options.at_once}" if options.at_once else ""
    mixed = ["--other-commit"] if options.other_commit else []
    command = shlex.join([sys.executable, "-m", "flava_ds.cli", "sweep", str(folder), *mixed])
    logs = str(folder / "logs").replace("%", "%%")  # %x is the job's name
    lines = [
        "#!/usr/bin/env bash",
        "# One task for each run of the sweep. A finished run's task ends at once; submit it again to retry.",
        *settings,
        f"#SBATCH {shlex.quote(f'--job-name={folder.name}')}",
        f"#SBATCH --nodes={options.nodes}",
        f"#SBATCH {shlex.quote(f'--output={logs}/%x-%A_%a.log')}",
        f"#SBATCH --array=0-{len(names) - 1}{limit}",
        "set -euo pipefail",
        f"cd {shlex.quote(str(LAUNCHERS.parent))}",
        "export SLURM_SUBMIT_DIR=$PWD PYTHONSAFEPATH=1",
        f"runs=({' '.join(names)})",
        "run=${runs[$SLURM_ARRAY_TASK_ID]}",
        f"exec >>{shlex.quote(str(folder))}/logs/$run.log 2>&1",
        f"export PORT=$(({FIRST_PORT} + SLURM_ARRAY_TASK_ID % {PORTS}))",
        f'mapfile -d "" -t words < <({command} --begin "$run")',
        "wait $!  # ends the task with the status of a run that cannot begin",
        'if [ "${#words[@]}" -eq 0 ]; then exit 0; fi',
        f'finish() {{ {command} --end "$run" $?; }}',
        "trap finish EXIT",
        'source launchers/slurm.sbatch "${words[@]}"',
    ]
    path = folder / "sweep.sbatch"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join(lines) + "\n")
    return f"{path}: {len(names)} tasks; submit it with\n  sbatch {shlex.quote(str(path))}"


def note(sweep: Sweep, options: argparse.Namespace) -> int:
    """Notes for a job script that a run begins, printing its words with a NUL behind each, or how it ended.

    A finished run has no words. Raises: UserError for an unknown run, or a base that was changed behind a
    finished one.
    """
    from flava_ds.scaling.sweep import FINISHED

    name = options.begin or options.end[0]
    if name not in sweep.runs:
        raise UserError(f"{sweep.folder}: has no run '{name}'; --status lists them")
    if options.end is not None:
        status = options.end[1]
        if not status.isdecimal():
            raise UserError(f"--end {name} {status}: give an exit status, a whole number")
        print(sweep.end(name, int(status))["state"])
        return 0
    if sweep.state(name)["state"] != FINISHED:
        check_begin(sweep, options)
        sweep.begin(name)
        words = command_words(sweep, name)
        sys.stdout.write("".join(f"{word}\0" for word in (sweep.base, *words)))
    return 0
