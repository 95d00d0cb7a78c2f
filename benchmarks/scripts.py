"""What the scripts of this folder have in common: a command line, new processes, and results."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help shows a script's docstring as it is written."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def read_results(path: Path, otherwise: Any) -> Any:
    """Returns results that were written before, or `otherwise`."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise


def in_new_process(script: str, *words: str, threads: int = 1) -> Any:
    """Runs a script again in a process that has done nothing else, and returns the JSON of its last line.

    Raises: CalledProcessError; what it writes to standard error is seen.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, script, *words], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def on_ranks(ranks: int, folder: Path, script: str, *words: str) -> None:
    """Runs a script in `folder` on several gloo ranks of one thread each. Raises: CalledProcessError."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [*torchrun, str(Path(script).resolve()), *words]
    subprocess.run(command, cwd=folder, env=environment, check=True)
