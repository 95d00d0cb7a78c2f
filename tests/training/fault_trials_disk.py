"""Trials of a fault campaign with disks: full ones, writes that do not arrive as they were meant, files that
change while nobody trains.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from fault_trials import FAULTS, Trial
from real_runs import steps_of

KIB = 2**10


def full_disk(trial: Trial) -> bool:
    """Gives checkpoints, or the whole run, a disk that is too small; then there is room."""
    folder = trial.draw.choice([trial.checkpoints, trial.config.run_path])
    kib = trial.draw.randint(8, 1200) if folder == trial.checkpoints else trial.draw.randint(64, 1200)
    trial.drawn.append(f"{kib} KiB for {folder.name if folder == trial.checkpoints else 'the run'}")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        trial.start()
        trial.job.wait_until(lambda: len(steps_of(trial.config.run_path)) > 0)
        trial.end(time.monotonic())
        subprocess.run(["mount", "-o", "remount,size=512m", str(folder)], check=True)
        return trial.go_on()
    finally:
        if trial.job is not None:
            trial.job.kill()
        subprocess.run(["umount", str(folder)], check=True)


def limited_files(trial: Trial) -> None:
    """Lets no file of one rank grow beyond a size."""
    limit = LimitedFiles(trial.rank(), trial.draw.randint(1, 250) * KIB)
    trial.drawn.append(f"{limit.size // KIB} KiB a file")
    trial.start(limit)
    trial.job.wait_until(lambda: len(steps_of(trial.config.run_path)) > 0)
    trial.end(time.monotonic())


def corrupted_write(trial: Trial) -> None:
    """Flips a bit on the way to the disk in one save of one rank, then kills all ranks."""
    wanted = trial.draw.randint(2, 8)
    corruption = CorruptedWrite(trial.rank(), wanted, trial.draw.random())
    trial.drawn.append(f"in save {wanted}")
    trial.start(corruption)
    name = f"step_{2 * wanted:08d}"
    trial.job.wait_until(lambda: (trial.checkpoints / name / "manifest.json").is_file())
    time.sleep(trial.draw.uniform(0, 0.3))
    trial.inject(trial.job.kill)


def damage(trial: Trial) -> None:
    """Stops a run and damages a file of its latest checkpoint, or `latest` itself."""
    trial.start()
    wanted = trial.draw.randint(5, trial.gauntlet.steps - 6)
    trial.job.wait_until(lambda: len(steps_of(trial.config.run_path)) > wanted)
    trial.inject(lambda: trial.job.signal(signal.SIGTERM, 0))
    newest = sorted(trial.checkpoints.glob("step_*"))[-1]
    victims = [*sorted(newest.iterdir()), trial.checkpoints / "latest", newest]
    victim, way = trial.draw.choice(victims), trial.draw.choice(list(WAYS))
    if victim == newest:
        way = "removed"
    trial.drawn.append(f"{victim.name} {way}, after step {wanted}")
    WAYS[way](trial, victim)


def flip(trial: Trial, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[trial.draw.randrange(len(content))] ^= 1 << trial.draw.randrange(8)
    path.write_bytes(bytes(content))


def cut(trial: Trial, path: Path) -> None:
    os.truncate(path, trial.draw.randrange(path.stat().st_size))


def zeros(trial: Trial, path: Path) -> None:
    """As a file system leaves a file whose blocks had not reached the disk."""
    size = path.stat().st_size
    start = trial.draw.randrange(size)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(size - start))


def longer(trial: Trial, path: Path) -> None:
    with path.open("ab") as file:
        file.write(trial.draw.randbytes(trial.draw.randint(1, 5000)))


def remove(trial: Trial, path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


WAYS = {"flipped": flip, "cut short": cut, "with zeros": zeros, "prolonged": longer, "removed": remove}


class LimitedFiles:
    """Lets no file of one rank grow beyond `size`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def __call__(self, rank: int) -> None:
        if rank == self.rank:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


class CorruptedWrite:
    """Changes one bit of what one rank writes in one of its saves, behind the checksum's back."""

    def __init__(self, rank: int, save: int, share: float) -> None:
        self.rank, self.save, self.share, self.saves = rank, save, share, 0

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        from flava_ds.checkpoints.saver import Saver

        write = Saver._write

        def corrupting(saver: Any, staged: Any, contents: Any) -> None:
            self.saves += 1
            write(saver, staged, contents)
            if self.saves == self.save:
                names = [name for name in contents if (staged.local / name).stat().st_size]
                path = staged.local / names[int(self.share * len(names))]
                content = bytearray(path.read_bytes())
                content[int(self.share * len(content))] ^= 16
                path.write_bytes(bytes(content))

        Saver._write = corrupting  # type: ignore[method-assign]


FAULTS.update(
    {
        "a disk runs full": full_disk,
        "files of a rank cannot grow": limited_files,
        "a bit is flipped while a checkpoint is written": corrupted_write,
        "a file is damaged while nobody trains": damage,
    }
)
