"""What a checkpoint says of its sources, compared with those of a run that goes on from it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flava_ds.data.sources import CONTENT, SHARDS, changed_content
from flava_ds.errors import CheckpointError

log = logging.getLogger(__name__)

MOVED_STREAM = (
    "source '%s' is a stream that was read %s and is now read %s: the rest of its epoch comes in "
    "another order, with some samples repeated and some missing"
)
MAY_MOVE = {"lanes": "by", SHARDS: "from"}
"""What may change of a stream, and how messages say it."""

States = Mapping[str, dict[str, Any]]
"""By source, what StepLoader.state returns."""


def compare_states(saved: States, current: States, drawn: int, block_steps: int) -> None:
    """Compares two states up to `drawn` steps, counted as the order of the sources counts them.

    Weights from that step on, and sources that no step before could draw, may differ.

    Raises: CheckpointError that names every difference that would change the data or their order.
    """
    saved, current = drawn_before(drawn, saved), drawn_before(drawn, current)
    saved = _under_new_names(saved, current)
    new = [name for name in current if name not in saved]
    differences = []
    for name in (name for name in saved if name not in current):
        seeds = [f"--data.sources.{other}.seed {saved[name].get('source_seed')}" for other in new]
        renamed = f" (if it is renamed, {' or '.join(seeds)} keeps its order)" if new else ""
        differences.append(f"source '{name}' is gone{renamed}")
    differences += [f"source '{name}' is new" for name in new]
    changed: list[str] = []
    for name in (name for name in current if name in saved):
        changed += changed_content(name, saved[name].get(CONTENT), current[name].get(CONTENT))
        for field, value in current[name].items():
            before = saved[name].get(field)
            if field in MAY_MOVE and before not in (None, value):
                log.warning(MOVED_STREAM, name, *(f"{MAY_MOVE[field]} {way}" for way in (before, value)))
            elif field not in ("epoch", "position", *MAY_MOVE, CONTENT) and before != value:
                option = f" (--data.sources.{name}.seed {before} keeps it)"
                keep = option if field == "source_seed" else ""
                differences.append(f"source '{name}': {field} was {before}{keep}, is {value}")
    if differences:
        following = -(-drawn // block_steps) * block_steps
        raise CheckpointError(
            "the data order would change on resume: "
            + "; ".join(differences)
            + f". Restore these settings (from step {following} on, a recipe's or a file's "
            "data.weight_changes may change weights and begin sources of weight 0), or start another run "
            "from its weights: --name OTHER --initial-weights RUN"
        )
    if changed:
        raise CheckpointError(
            f"the data are not those that the checkpoint was trained on: {'; '.join(changed)}. Restore "
            "the shards, or start another run from its weights: "
            "--name OTHER --initial-weights RUN"
        )


def drawn_before(step: int, states: States) -> dict[str, dict[str, Any]]:
    """Returns the states of the sources that a step before `step` could draw, without later weights."""
    found = {}
    for name, state in states.items():
        weights = re.findall(r"(\S+) from step (\d+)", str(state.get("weight")))
        until = [(share, first) for share, first in weights if int(first) < step]
        if any(share != "0" for share, _ in until):
            found[name] = state | {"weight": listed(until)}
    return found


def listed(weights: Iterable[tuple[object, object]]) -> str:
    """Formats (share, first step) as a state keeps them."""
    return ", ".join(f"{share} from step {first}" for share, first in weights)


def _under_new_names(saved: States, current: States) -> States:
    """Returns the saved states, of a source that is gone under the name of the new one that has its seed: its
    samples and their order hang on the seed alone.
    """
    names = {state["source_seed"]: name for name, state in current.items() if name not in saved}
    return {
        name if name in current else names.get(state.get("source_seed"), name): state
        for name, state in saved.items()
    }
