"""The rows x seeds of a table, each with one small file of results: which of them are left, also with nothing
but those files, and what makes a result one of these runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flava_ds.campaigns.course import quarter
from flava_ds.code_hash import hash_of_sources
from flava_ds.config import Config
from flava_ds.config.plain_files import loads, read_small
from flava_ds.errors import UserError, did_you_mean, first_of
from flava_ds.recipes.stages import Stage, Stages
from flava_ds.watching.environment import git_state

if TYPE_CHECKING:
    from flava_ds.evaluation.frozen_model import FrozenModel

RANKS = 2
ROUNDED = 1e-3
"""By how much sums over clusters, which are whole numbers, may be off a result's value."""
PLACES = ("name", "logging", "checkpoint", "codebook_weights", "vocabulary")
"""Settings that do not change a result, or name files, whose contents count."""


@dataclass(frozen=True)
class Table:
    """What is trained and measured, row by row."""

    name: str
    rows: tuple[str, ...]
    recipe: Callable[[str, int], Config | Stages]
    """Returns the runs of a row for an amount of work."""
    works: Mapping[str, int]
    """Amounts of work by name, the usual one first."""
    domains: Callable[[str, str], tuple[str, ...]]
    """Returns what a row is measured on, for a name of an amount of work."""
    begin: Callable[[Run, Stage], Config] = lambda run, stage: stage.config
    """Returns the configuration of a stage that inherits nothing, e.g. with initial weights."""
    some_lack: bool = False
    """Whether a domain is left out for which the model lacks a capability; otherwise that is an error."""
    added: tuple[str, ...] = ()
    """More domains, which results from before they were added lack. They stay out of the settings' hash, so
    that those results remain; each has its own."""
    along: tuple[str, ...] = ()
    """Domains that are measured on the way, too, after every quarter of a run's last stage."""
    untrained: Mapping[str, Callable[[], FrozenModel]] = field(default_factory=dict)
    """Rows that are models without training, the same for every seed, so they have one run."""
    option: str = "--rows"
    """The command's option that names rows, for messages."""


@dataclass(frozen=True)
class Run:
    """One row of a table with one seed."""

    table: Table
    row: str
    seed: int
    work: str
    out: Path
    """Folder of the results, which are kept."""
    runs: Path = Path("runs")
    """Parent of the runs' folders, which a machine may lose."""

    @property
    def file(self) -> Path:
        """Where its result belongs."""
        return self.out / self.work / f"{self.row}-{self.seed}.json"

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self.runs / f"{self.table.name}-{self.work}" / f"{self.row}-{self.seed}"

    @cached_property
    def sequence(self) -> Stages:
        """Its stages; most rows have one, those without training none."""
        if self.row in self.table.untrained:
            return Stages(name=self.row, stages=())
        found = self.table.recipe(self.row, self.table.works[self.work])
        stages = found.stages if isinstance(found, Stages) else (Stage(name="joint", config=found),)
        return Stages(
            name=self.row,
            stages=tuple(replace(stage, config=self._placed(stage.name, stage.config)) for stage in stages),
        )

    def _placed(self, stage: str, config: Config) -> Config:
        """Returns a stage's configuration with the seed, its folder, checkpoints that lose little, and those
        that are measured on the way.
        """
        every = quarter(config) if self.table.along else 0
        return replace(
            config,
            name=stage,
            seed=self.seed,
            checkpoint=replace(
                config.checkpoint, every_steps=every, keep_every=every, every_minutes=1.0, keep_last=1
            ),
            logging=replace(
                config.logging, run_directory=str(self.folder), tensorboard=False, prometheus=False
            ),
        )

    @cached_property
    def settings(self) -> str:
        """Hashes all that the result depends on beside the code: recipes, protocol, ranks, data, codebook and
        detector.

        Settings at their defaults stay out, so that fields which a later version adds change nothing.
        """
        from flava_ds.campaigns.measure import PROTOCOL, wider_protocols
        from flava_ds.demo.dataset import CHECKSUMS
        from flava_ds.regions.detector import weights_of

        files = [CHECKSUMS, *(Path(stage.config.data.vocabulary) for stage in self.sequence.stages)]
        files += [Path(own) for stage in self.sequence.stages if (own := stage.config.codebook_weights)]
        detectors = (getattr(stage.config.model, "detector", None) for stage in self.sequence.stages)
        files += [weights_of(own) for own in detectors if own]
        stages = [
            [_decided(stage.config, but=PLACES), [_decided(inherited) for inherited in stage.inherits]]
            for stage in self.sequence.stages
        ]
        decided = [stages, PROTOCOL, RANKS, self.domains, [_hash(file.read_bytes()) for file in files]]
        decided += wider_protocols(self.domains)
        return _hash(json.dumps(decided, sort_keys=True).encode())

    @property
    def domains(self) -> tuple[str, ...]:
        """What it is measured on."""
        return self.table.domains(self.row, self.work)

    @property
    def added(self) -> dict[str, str]:
        """Hashes the protocol of each domain that it is measured on besides."""
        from flava_ds.campaigns.measure import ADDED

        return {name: _hash(json.dumps(ADDED[name], sort_keys=True).encode()) for name in self.table.added}


def _decided(value: Any, but: tuple[str, ...] = ()) -> Any:
    """Returns a configuration as plain JSON types, without fields at their defaults and those in `but`."""
    if dataclasses.is_dataclass(value):
        found = {"class": type(value).__name__}
        for field in dataclasses.fields(value):
            own, default = getattr(value, field.name), field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if field.name not in but and own != default:
                found[field.name] = _decided(own, but)
        return found
    if isinstance(value, Mapping):
        return {key: _decided(own, but) for key, own in value.items()}
    return [_decided(own, but) for own in value] if isinstance(value, tuple) else value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def code() -> dict[str, str]:
    """Identifies this code: a hash of the package's sources, and the commit, if it is a repository's."""
    commit = (git_state() or {}).get("commit", "unknown")
    return {"sources": hash_of_sources("flava_ds"), "commit": commit}


def read_result(file: Path) -> dict[str, Any]:
    """Reads a run's result. Raises: UserError if it is damaged."""
    try:
        found = dict(loads(read_small(file)))
        for name, own in dict(found["metrics"]).items():
            sums, counts, value = own["sums"], found["counts"][own["clusters"]], float(own["value"])
            mean = sum(sums) / own["scale"] / sum(counts)
            if len(sums) != len(counts):
                raise ValueError(f"{name} has sums of {len(sums)} clusters of {len(counts)}")
            if not abs(mean - value) < ROUNDED:
                raise ValueError(f"the items of {name} have the mean {mean:g} and not {value:g}")
        work = ("training_flops", "training_seconds")  # the first results, of the ablation, lack them
        numbers = {name: float(found[name]) for name in work if name in found}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError(f"{numbers} are no numbers")
        whole = {"seed": int(found["seed"]), "row": str(found["row"]), "code": dict(found["code"])}
        whole |= {name: dict(found.get(name, {})) for name in ("added", "lacks")}
        return found | numbers | whole
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _damaged(file: Path, said: str) -> UserError:
    return UserError(f"{file}: no result of such a run ({said}); delete it to run it again")


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads a work's results: row -> those of its seeds. Raises: UserError."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = read_result(file)
        found.setdefault(result["row"], []).append(result)
    return found


def plan(table: Table, rows: list[str], seeds: Sequence[int], work: str, out: Path) -> list[Run]:
    """Lists the runs, all rows of a seed before the next, so that a part of a campaign can be compared.

    Raises: UserError for an unknown row or work.
    """
    for name, known, option in [
        (work, table.works, "--work"),
        *((row, table.rows, table.option) for row in rows),
    ]:
        if name not in known:
            raise UserError(
                f"{option} {name}: there is none{did_you_mean(name, known)}; choose of {', '.join(known)}"
            )
    return [
        Run(table, row, seed, work, out)
        for seed in seeds
        for row in table.rows
        if row in rows and not (seed and row in table.untrained)
    ]


def checked_result(run: Run) -> dict[str, Any]:
    """Reads the result of a run.

    Raises: UserError if it is of other settings, damaged, or without a number of what it was measured on.
    """
    from flava_ds.campaigns.measure import NUMBERS

    result = read_result(run.file)
    if result.get("settings") != run.settings:
        raise UserError(
            f"{run.file}: of other settings ({result.get('settings')}, here {run.settings}), made by "
            f"commit {result['code'].get('commit')}; give another --out, or delete it to run it again"
        )
    added = result["added"]
    wrong = [name for name, own in run.added.items() if added.get(name, own) != own]
    if wrong:
        raise UserError(
            f"{run.file}: its {wrong[0]} are of another protocol ({added[wrong[0]]}, here "
            f"{run.added[wrong[0]]}); give another --out, or delete it to run it again"
        )
    measured = [*run.domains, *(name for name in run.added if name in added)]
    if run.table.some_lack:
        measured = [name for name in measured if name not in result["lacks"]]
    numbers = [number for name in measured for number in NUMBERS[name]]
    if absent := [number for number in numbers if number not in result["metrics"]]:
        raise _damaged(run.file, f"without {first_of(absent, 3)}")
    return result


def check_others(table: Table, planned: list[Run], work: str, out: Path) -> None:
    """Raises UserError for a result in the folder that is compared with the planned ones, and is none of
    this table's runs or of other settings.
    """
    known = {run.file for run in planned}
    for file in sorted((out / work).glob("*.json")):
        if file in known:
            continue
        result = read_result(file)
        run = Run(table, result["row"], result["seed"], work, out)
        if result["row"] not in table.rows or run.file != file:
            raise UserError(
                f"{file}: says that it is row {result['row']!r:.60}, seed {result['seed']}, which is no run "
                "of that name; move it elsewhere"
            )
        checked_result(run)


def unfinished(planned: list[Run]) -> Iterator[Run]:
    """Yields the runs without a result. Says which results are of other code.

    Raises: UserError for a result of other settings, before anything runs.
    """
    here, todo = code(), []
    for run in planned:
        if not run.file.is_file():
            todo.append(run)
            continue
        result = checked_result(run)
        added = result["added"]
        lacking = "".join(f", without {name}" for name in run.added if name not in added)
        other = result["code"].get("sources") != here["sources"]
        how = " by other code" * other + lacking
        print(f"{run.row}, seed {run.seed}: finished{how}, {run.file}", flush=True)
    yield from todo
