"""mutants.csv: planted bugs that were noticed, each with a hash of everything that this hung on; those need
not run again.

`python mutation_record.py [MODULE...]` runs the mutants of all modules, or of those named, that have no row
that holds, and writes their rows; it ends with status 1 where one survives.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]
import case_record  # noqa: E402
import mutants  # noqa: E402
import rotation  # noqa: E402
from flava_kernels import OPS, aot_hash  # noqa: E402
from planted_bug import Mutant  # noqa: E402

PATH = Path(__file__).with_name("mutants.csv")
RUNNER = Path(__file__).with_name("mutation_run.py")
FIELDS = ("triton", "module", "name", "outcome", "hash")
DEAD = ("caught", "crashed")
SECONDS = 3600

Record = dict[tuple[str, str], dict[str, str]]


def files_of(module: str, mutant: Mutant) -> list[Path]:
    """Lists what decides whether a mutant is noticed: kernels, their operator and its cases, and the checks,
    with what they import.
    """
    checks = ("kernels/kernel_checks.py",) if mutant.checks else ()
    decide = case_record.files_of(OPS[mutant.op], f"flava_kernels.triton_ops.{module}", *checks)
    return [*decide, RUNNER]


def hash_of(module: str, mutant: Mutant, outcome: str) -> str:
    """Returns the hash of a mutant, of the code that decides about it, of Triton's version, and of the
    outcome.
    """
    version = importlib.metadata.version("triton")
    return aot_hash.digest(
        version, aot_hash.of_files(files_of(module, mutant)), module, repr(mutant), outcome
    )


def read(path: Path = PATH) -> Record:
    """Reads the rows by module and name; an absent file has none."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(line["module"], line["name"]): line for line in csv.DictReader(file)}


def holds(record: Record, module: str, mutant: Mutant) -> bool:
    """Tells whether a mutant's death is recorded and nothing that it hung on has changed since."""
    line = record.get((module, mutant.name))
    return (
        line is not None
        and line["outcome"] in DEAD
        and line["hash"] == hash_of(module, mutant, line["outcome"])
    )


def held_in(record: Record) -> dict[str, list[str]]:
    """Names the mutants with a row that holds, by module."""
    return {
        module: [mutant.name for mutant in planted if holds(record, module, mutant)]
        for module, planted in mutants.MUTANTS.items()
    }


def to_run(held: dict[str, list[str]], seed: str) -> dict[str, list[str]]:
    """Names the mutants that are not held by module; and of a third of the modules, which the seed draws, one
    that is.
    """
    in_turn = rotation.draw_some(mutants.MUTANTS, seed, len(mutants.MUTANTS) // 3)
    found = {}
    for module, planted in mutants.MUTANTS.items():
        some = held[module] and module in in_turn
        drawn = rotation.draw(held[module], f"{seed} {module}") if some else ""
        if names := [own.name for own in planted if own.name not in held[module] or own.name == drawn]:
            found[module] = names
    return found


def run(module: str, names: Sequence[str], folder: Path) -> tuple[dict[str, str], str]:
    """Runs mutants of one module, and their cases without a bug; returns the outcomes by name, and what was
    written to stderr.
    """
    command = [sys.executable, "-W", "ignore", RUNNER, module, folder, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout), done.stderr


def wrong(outcomes: dict[str, str]) -> dict[str, str]:
    """Returns the outcomes that should be others: mutants have to die, unchanged kernels to survive."""
    return {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome not in (("survived",) if name.startswith("unchanged") else DEAD)
    }


def write(record: Record) -> None:
    """Writes the rows in the order of MUTANTS."""
    order = [(module, mutant.name) for module, planted in mutants.MUTANTS.items() for mutant in planted]
    with PATH.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(record[key] for key in order if key in record)


def main(*modules: str) -> int:
    """Brings mutants.csv up to date, a module at a time."""
    record, status = read(), 0
    for module in modules or mutants.MUTANTS:
        planted = mutants.MUTANTS[module]
        left = [mutant for mutant in planted if not holds(record, module, mutant)]
        print(f"{module}: {len(left)} of {len(planted)} planted bugs run", flush=True)
        if not left:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcomes, said = run(module, [mutant.name for mutant in left], Path(folder))
        if wrong(outcomes):
            status = 1
            print(f"error: {module}: {wrong(outcomes)}\n{said}", file=sys.stderr)
        # cases that always fail notice no bug
        believed = not any(name.startswith("unchanged") for name in wrong(outcomes))
        for mutant in left:
            record.pop((module, mutant.name), None)
            outcome = outcomes[mutant.name]
            if believed and outcome in DEAD:
                values = (
                    importlib.metadata.version("triton"),
                    module,
                    mutant.name,
                    outcome,
                    hash_of(module, mutant, outcome),
                )
                record[module, mutant.name] = dict(zip(FIELDS, values, strict=True))
        write(record)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
