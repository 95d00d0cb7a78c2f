"""Takes real training steps on this machine's cores, beside the planner's forecast of them.

One of plan_validation.py's parts. The forecast is the planner's own, with rates that plan_rates.py has
measured in place of assumptions about a GPU. Ranks have a core and a thread each.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from plan_rates import batches_of, quiet_words, real_lengths, width_words
from scripts import on_ranks

from flava_ds.config import Config
from flava_ds.recipes import resolve

OF_EACH = 10
"""Steps of the source that is drawn least."""
UNCOUNTED = 2
"""First steps of each source, which allocate."""
DISTURBED = 0.1
"""Share of a step that a rank may wait for a core; a longer wait is another process's, and the step is left
out."""
ENOUGH, TRIES = 5, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A run whose steps are measured and forecast."""

    title: str
    recipe: str
    ranks: int
    words: tuple[str, ...] = ()

    def config(self, folder: Path, name: str) -> Config:
        """Returns its configuration: a rank alone has a loader process, on the other core."""
        workers = ("--data.num-workers", "1" if self.ranks == 1 else "0")
        return resolve(self.recipe, [*quiet_words(folder, name), *self.words, *workers])


HALF = tuple(batches_of(resolve("demo", []), 64))
CASES = (
    Case("`demo`", "demo", 1),
    Case("`demo`", "demo", 2),
    Case("`demo`, batches of 64", "demo", 1, HALF),
    Case("`demo`, two micro-batches", "demo", 1, ("--training.gradient-accumulation-steps", "2")),
    Case("`demo`, 384 wide", "demo", 1, tuple(width_words(384))),
    Case("`demo`, 384 wide", "demo", 2, tuple(width_words(384))),
    Case("`demo_clip`", "demo_clip", 1),
    Case("`demo_clip`", "demo_clip", 2),
)


def time_all(folder: Path, rates: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Measures and forecasts every case."""
    measured = [measure_case(case, folder, number) for number, case in enumerate(CASES)]
    return [row_of(case, steps, rates, folder) for case, steps in zip(CASES, measured, strict=True)]


def measure_case(case: Case, folder: Path, number: int) -> list[tuple[str, float, float]]:
    """Returns (source, seconds, seconds that a rank waited for a core) of real steps, until ENOUGH of each
    source were undisturbed.

    Raises: SystemExit if they are not.
    """
    out = folder / f"steps_{number}.json"
    steps: list[tuple[str, float, float]] = []
    for _ in range(TRIES):
        on_ranks(case.ranks, folder, __file__, str(number), str(folder), str(out))
        steps += json.loads(out.read_text(encoding="utf-8"))
        counts = Counter(source for source, _ in undisturbed(steps))
        if all(counts[source] >= ENOUGH for source, _, _ in steps):
            return steps
    raise SystemExit(f"error: {case.title} on {case.ranks}: other processes use the cores; stop them")


def undisturbed(steps: list[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """Returns (source, seconds) of the steps in which no rank waited long for a core."""
    return [(source, seconds) for source, seconds, waited in steps if waited <= DISTURBED * seconds]


def waited_for_core() -> float:
    """Returns the seconds that this thread was ready to run but had no core, by the kernel's count."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9


def one_rank(number: int, folder: Path, out: Path) -> None:
    """On each rank: takes steps; rank 0 writes their times."""
    from flava_ds.build import build
    from flava_ds.ranks.distributed import gather_objects

    trainer = build(config := CASES[number].config(folder, f"steps{number}"))
    seen = Counter(dict.fromkeys(config.drawn_sources, -UNCOUNTED))
    steps: list[tuple[str, float, float]] = []
    begun, late = time.perf_counter(), waited_for_core()
    for step, batches in enumerate(trainer.loader):
        trainer.train_step(step, batches)
        ended, later = time.perf_counter(), waited_for_core()
        source = batches[0].source
        seen[source] += 1
        if seen[source] > 0:
            steps.append((source, ended - begun, later - late))
        begun, late = ended, later
        if min(seen.values()) == OF_EACH:
            break
    waits = gather_objects(trainer.world, [waited for _, _, waited in steps])
    trainer.recorder.close()
    if trainer.world.is_main:
        longest = map(max, zip(*waits, strict=True))
        found = [(source, took, waited) for (source, took, _), waited in zip(steps, longest, strict=True)]
        out.write_text(json.dumps(found), encoding="utf-8")


def setting_of_case(case: Case, rates: dict[str, dict[str, Any]], config: Config) -> Any:
    """Returns the planner's setting of a case on this machine."""
    import torch

    from flava_ds.scaling.facts import Facts
    from flava_ds.scaling.hardware import this_machine
    from flava_ds.scaling.host_rates import HostRates
    from flava_ds.scaling.measure import measure
    from flava_ds.scaling.setting import setting_of

    found = rates[str(case.ranks)]
    host = HostRates.from_json(found | {"loader": found["loader"][case.recipe]})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    samples = {name: config.micro_batch_size(name, case.ranks) for name in config.drawn_sources}
    work = measure(config, real_lengths(config), device=torch.device("cpu"), samples=samples)
    return setting_of(Facts.of(config), this_machine(host, case.ranks, memory), lambda _: work)


def forecast_case(setting: Any) -> dict[str, Any]:
    """Returns the forecast of a setting in ms: by source and part, and of the mean step."""
    from flava_ds.scaling.assumptions import of_host
    from flava_ds.scaling.plan import LOADER, forecast, loader_ms

    gpu = setting.cluster.gpu
    figures = forecast(setting, assumed := of_host(gpu.rates, gpu.flops))
    kinds = {}
    for source, time_of in figures.times.items():
        kinds[source] = dict(time_of.ms)
        kinds[source][LOADER] = 0.0 if setting.reads_ahead else loader_ms(setting, source, assumed)
    return {"kinds": kinds, "parts": dict(figures.parts), "step_ms": figures.step_ms}


def row_of(
    case: Case,
    steps: list[tuple[str, float, float]],
    rates: dict[str, dict[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    """Returns what was measured of a case beside its forecast, in ms."""
    config = case.config(folder, "forecast")
    setting = setting_of_case(case, rates, config)
    planned = forecast_case(setting)
    taken: dict[str, list[float]] = defaultdict(list)
    for source, seconds in undisturbed(steps):
        taken[source].append(1e3 * seconds)
    kinds = []
    for source, parts in planned["kinds"].items():
        own = taken[source]
        low, _, high = statistics.quantiles(own, n=4)
        kinds.append({"source": source, "steps": len(own), "measured": statistics.median(own), "low": low,
                      "high": high, "forecast": sum(parts.values()), "parts": parts})  # fmt: skip
    mean = sum(setting.shares[kind["source"]] * kind["measured"] for kind in kinds)
    return {
        "title": case.title,
        "recipe": case.recipe,
        "ranks": case.ranks,
        "options": list(case.words),
        "left_out": len(steps) - sum(map(len, taken.values())),
        "kinds": kinds,
        "measured": mean,
        "forecast": planned["step_ms"],
        "parts": planned["parts"],
    }


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)
