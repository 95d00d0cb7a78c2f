"""A sweep as it is written: a base recipe, fixed fields, axes of a grid, a random search, seeds.

base: demo
fixed: {training.total_steps: 300}
axes:
  width:                                        # each point sets several fields
    narrow: {model.image.hidden_size: 64, model.text.hidden_size: 64, model.multimodal.hidden_size: 64}
    wide: {}
grid:
  optimizer.lr: [3.0e-4, 1.0e-3]
  width: [narrow, wide]
search: {runs: 8, fields: {optimizer.weight_decay: {from: 0.01, to: 0.3, log: true}}}
seeds: [0, 1]
metric: loss/global_contrastive
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flava_ds.errors import ConfigError, did_you_mean

PART_KEYS = ("fixed", "grid", "search", "seeds")
SPEC_KEYS = ("base", "name", "metric", "hold_out", "axes", "parts", *PART_KEYS)
SEARCH_KEYS = ("by", "runs", "seed", "fields")
RANGE_KEYS = ("from", "to", "log", "integer")
OWN_FIELDS = ("name", "logging.run_directory")
"""Fields that say where a run lies."""
HASH_LETTERS = 10
MOST_RUNS = 10_000
Point = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Of an axis: its label by axis, and the fields that it sets."""
DEFAULT_METRIC = "loss/global_contrastive"


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    overrides: Mapping[str, Any]
    """Field of the configuration -> value."""
    point: Mapping[str, Any]
    """Where it stands on the axes: axis -> value, or the label of a point that sets several fields."""
    parts: tuple[str, ...] = ()
    held_out: bool = False

    @property
    def name(self) -> str:
        """A hash of the overrides; the run's folder is called by it."""
        said = json.dumps(dict(self.overrides), sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:HASH_LETTERS]

    def place(self) -> str:
        """Says where the run stands on the axes."""
        return ", ".join(f"{axis} {value}" for axis, value in self.point.items())

    def words(self) -> list[str]:
        """Returns the overrides as options of `flava-ds train`."""
        return [word for name, value in self.overrides.items() for word in option(name, value)]


@dataclass(frozen=True)
class Range:
    """Where a search draws a field from: `choices`, or the numbers from `low` to `high`."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def draw(self, generator: random.Random) -> Any:
        """Draws a value; `high` is one of the integers."""
        if self.choices:
            return generator.choice(self.choices)
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        elif self.integer:
            return generator.randint(int(self.low), int(self.high))
        else:
            value = generator.uniform(self.low, self.high)
        return round(value) if self.integer else float(f"{value:.6g}")

    def holds(self, value: Any) -> bool:
        """Returns whether a value can be drawn from here."""
        if self.choices:
            return value in self.choices
        number = isinstance(value, int | float) and self.low <= value <= self.high
        return number and (not self.integer or float(value).is_integer())


@dataclass(frozen=True)
class Search:
    """A random search, or one whose next run Optuna chooses by the finished ones."""

    fields: Mapping[str, Range]
    runs: int
    by: str = "random"
    seed: int = 0


@dataclass(frozen=True)
class Spec:
    """A sweep. The runs of a search by Optuna are not among `runs`: they follow from results."""

    base: str
    name: str
    metric: str
    runs: tuple[Run, ...]
    asked: Search | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def may_ask(self, run: Run) -> bool:
        """Returns whether the search by Optuna, as it is written now, may have asked for a run."""
        fields = {} if self.asked is None else self.asked.fields
        return (
            run.point.keys() == fields.keys()
            and dict(run.overrides) == {**self.fixed, **run.point}
            and all(fields[name].holds(value) for name, value in run.point.items())
        )


def option(name: str, value: Any) -> list[str]:
    """Returns a field and its value as words of the command line."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        section, _, last = dashed.rpartition(".")
        return [f"--{dashed}"] if value else [f"--{section}.no-{last}" if section else f"--no-{last}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{dashed}", *(repr(each) if isinstance(each, float) else str(each) for each in values)]


def parse(data: Any, where: str, stem: str) -> Spec:
    """Reads a sweep from plain types; `stem` is its name if it gives none.

    Raises: ConfigError naming the file, the key and what to do.
    """
    keys(data, SPEC_KEYS, where)
    if not isinstance(base := data.get("base"), str):
        raise ConfigError(f"{where}: key 'base' is missing; it names the recipe that the sweep changes")
    own = {key: data[key] for key in PART_KEYS if key in data}
    named = mapping(data.get("axes", {}), f"{where}: axes")
    parts = mapping(data.get("parts", {}), f"{where}: parts") or {"": {}}
    made: dict[str, Run] = {}
    fixed = mapping(data.get("fixed", {}), f"{where}: fixed")
    for label, part in parts.items():
        place = f"{where}: parts.{label}" if label else where
        keys(part, PART_KEYS, place)
        merged = own | part | {"fixed": {**fixed, **mapping(part.get("fixed", {}), f"{place}: fixed")}}
        for run in expand(merged, place, named):
            before = made.get(run.name)
            labels = (*(before.parts if before else ()), *([label] if label else []))
            point = {**(before.point if before else {}), **run.point}
            made[run.name] = replace(run, point=point, parts=labels)
            if len(made) > MOST_RUNS:
                raise ConfigError(f"{where}: has more than {MOST_RUNS} runs; leave points of an axis out")
    asked = search_of(own, where) if own.get("search", {}).get("by") == "optuna" else None
    if any("search" in part and part["search"].get("by") == "optuna" for part in parts.values()):
        raise ConfigError(
            f"{where}: a search by optuna cannot be one of several parts; give it a file of its own"
        )
    return Spec(
        base=base,
        name=name_of(data, stem, where),
        metric=text(data, "metric", DEFAULT_METRIC, where),
        runs=held_out(made, mapping(data.get("hold_out", {}), f"{where}: hold_out"), where),
        asked=asked,
        fixed=fixed,
    )


def name_of(data: Mapping[str, Any], stem: str, where: str) -> str:
    """Returns a sweep's name, which is that of its folder. Raises: ConfigError."""
    name = text(data, "name", stem, where)
    if name in ("", ".", "..") or "/" in name:
        raise ConfigError(f"{where}: name {name!r:.60} names no folder; give the place by --folder")
    return name


def text(data: Mapping[str, Any], key: str, default: str, where: str) -> str:
    """Returns what a key says. Raises: ConfigError for anything but text."""
    if not isinstance(value := data.get(key, default), str):
        raise ConfigError(f"{where}: {key} is {value!r:.60}, which is no text; put it in quotes")
    return value


def expand(part: Mapping[str, Any], where: str, named: Mapping[str, Any]) -> Iterator[Run]:
    """Yields the runs of a part: every point of the grid with every draw of the search and every seed.

    Raises: ConfigError.
    """
    fixed = mapping(part.get("fixed", {}), f"{where}: fixed")
    grid = mapping(part.get("grid", {}), f"{where}: grid")
    axes = [points(name, values, where, named.get(name)) for name, values in grid.items()]
    search = search_of(part, where)
    if search is not None and search.by == "optuna":
        if axes or "seeds" in part:
            raise ConfigError(f"{where}: optuna's search takes no grid and no seeds; set them under fixed")
        return
    axes += [drawn(search)] if search is not None else []
    if "seeds" in part:
        axes.append(points("seed", part["seeds"], where))
    if not axes:
        raise ConfigError(f"{where}: has no grid, search or seeds; give an axis, e.g. seeds: [0, 1]")
    for chosen in itertools.product(*axes):
        overrides: dict[str, Any] = dict(fixed)
        point: dict[str, Any] = {}
        for labels, fields in chosen:
            point |= labels
            overrides |= fields
        for name, value in point.items():
            if name in overrides and name not in named and overrides[name] is not value != overrides[name]:
                raise ConfigError(
                    f"{where}: a later axis sets {name} to {overrides[name]!r:.60}, so no run has "
                    f"{value!r:.60}; put the axis {name} last, or leave it out"
                )
        check_fields(overrides, where)
        yield Run(overrides, point)


def check_fields(overrides: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for a field that a sweep sets itself, or a value that no field can have."""
    for name, value in overrides.items():
        if name.replace("-", "_") in OWN_FIELDS:
            raise ConfigError(f"{where}: a sweep gives every run its own {name}; leave it out")
        values = value if isinstance(value, list) else [value]
        if not all(each is None or isinstance(each, str | int | float) for each in values):
            raise ConfigError(f"{where}: {name} is {value!r:.60}; give a number, a text or a list of them")


def points(name: str, values: Any, where: str, named: Any = None) -> list[Point]:
    """Returns an axis' points: values of the field of that name, or labels of `named`, which has fields for
    each. Raises: ConfigError.
    """
    place = f"{where}: grid.{name}"
    if not isinstance(values, list):
        raise ConfigError(f"{place} is {values!r:.60}; give a list of values, or of labels under axes.{name}")
    if not values:
        raise ConfigError(f"{place} is empty, so there is nothing to run; give it a value")
    if named is None:
        return [({name: value}, {name: value}) for value in values]
    fields = {
        label: mapping(own, f"{where}: axes.{name}.{label}")
        for label, own in mapping(named, f"{where}: axes.{name}").items()
    }
    for value in values:
        if not isinstance(value, str) or value not in fields:
            hint = did_you_mean(str(value), fields) or f"; there is {', '.join(fields)}"
            raise ConfigError(f"{place} has {value!r:.60}, which is no label of axes.{name}{hint}")
    return [({name: value}, fields[value]) for value in values]


def search_of(part: Mapping[str, Any], where: str) -> Search | None:
    """Reads a part's search. Raises: ConfigError."""
    if "search" not in part:
        return None
    place, data = f"{where}: search", mapping(part["search"], f"{where}: search")
    keys(data, SEARCH_KEYS, place)
    by, runs, seed = data.get("by", "random"), data.get("runs", 0), data.get("seed", 0)
    if by not in ("random", "optuna"):
        raise ConfigError(f"{place}.by is {by!r:.60}; use random or optuna")
    for name, value, least in (("runs", runs, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{place}.{name} is {value!r:.60}; give a whole number of at least {least}")
    fields = mapping(data.get("fields", {}), f"{place}.fields")
    if not fields:
        raise ConfigError(
            f"{place}.fields is empty, so there is nothing to search; name a field and its range"
        )
    ranges = {name: range_of(value, f"{place}.fields.{name}") for name, value in fields.items()}
    return Search(ranges, runs, by, seed)


def range_of(value: Any, where: str) -> Range:
    """Reads where a field is drawn from. Raises: ConfigError."""
    if isinstance(value, list) and value:
        return Range(choices=tuple(value))
    data = mapping(value, where)
    keys(data, RANGE_KEYS, where)
    ends = [data.get("from"), data.get("to")]
    numbers = [float(end) for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(numbers) < len(ends):
        raise ConfigError(f"{where} needs numbers under 'from' and 'to', or a list of choices")
    low, high = numbers
    if not low < high:
        raise ConfigError(f"{where} goes from {low:g} to {high:g}; give the lower end first")
    if data.get("integer") and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{where} draws whole numbers from {low:g} to {high:g}; give whole ends")
    if data.get("log") and low <= 0:
        raise ConfigError(f"{where} is logarithmic from {low:g}; begin above 0")
    return Range(low=low, high=high, log=bool(data.get("log")), integer=bool(data.get("integer")))


def drawn(search: Search) -> list[Point]:
    """Returns a random search's points. The n-th is the same for any number of runs."""
    found: list[Point] = []
    for number in range(search.runs):
        generator = random.Random(f"{search.seed}/{number}")
        fields = {name: own.draw(generator) for name, own in search.fields.items()}
        found.append((fields, fields))
    return found


def held_out(runs: Mapping[str, Run], wanted: Mapping[str, Any], where: str) -> tuple[Run, ...]:
    """Marks the runs at all of the given places of axes. Raises: ConfigError when there is none."""
    axes = {name for run in runs.values() for name in run.point}
    for name in wanted:
        if name not in axes:
            hint = did_you_mean(name, axes) or f"; there is {', '.join(sorted(axes))}"
            raise ConfigError(f"{where}: hold_out.{name} is no axis{hint}")
    marked = tuple(
        replace(run, held_out=bool(wanted) and all(run.point.get(n) == value for n, value in wanted.items()))
        for run in runs.values()
    )
    if wanted and not any(run.held_out for run in marked):
        raise ConfigError(f"{where}: hold_out names no run of the sweep; give values that its axes have")
    return marked


def mapping(data: Any, where: str) -> Mapping[str, Any]:
    """Returns a mapping. Raises: ConfigError for anything else."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {data!r:.60}; give names with values")
    return data


def keys(data: Any, known: tuple[str, ...], where: str) -> None:
    """Raises ConfigError for a key that is not known."""
    for key in mapping(data, where):
        if key not in known:
            raise ConfigError(f"{where}: key '{key}' is unknown{did_you_mean(key, known) or ''}; there is "
                              f"{', '.join(known)}")  # fmt: skip
