"""Saved configurations of earlier versions, brought to the form of today's, so that their runs go on with the
same data order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_KINDS = ("pair", "image", "text")
"""The order of kind_weights when they were a list."""


def modernised(saved: Any) -> Any:
    """Returns the JSON of a configuration with what earlier versions wrote otherwise in today's form;
    anything else is left for the reader to judge.

    There was one family, one optimizer and one schedule, and six objectives that told their type by their
    name. Sources were a list; their seeds were their places in it, and so were the places of weights by
    source.
    """
    return _sources_by_name(_with_types(saved))


def _with_types(saved: Any) -> Any:
    """Adds the tags that sections of one form did not need."""
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict) or "type" in saved["model"]:
        return saved
    changed = dict(saved)
    for section, tag in (("model", "flava"), ("optimizer", "adamw"), ("schedule", "cosine")):
        if isinstance(saved.get(section), dict):
            changed[section] = {"type": tag, **saved[section]}
    if isinstance(saved.get("objectives"), dict):
        objectives = saved["objectives"].items()
        changed["objectives"] = {
            n: {"type": n, **own} if isinstance(own, dict) else own for n, own in objectives
        }
    return changed


def _sources_by_name(saved: Any) -> Any:
    """Makes a mapping of a list of sources, and of what was told by their places."""
    data = saved.get("data") if isinstance(saved, dict) else None
    if not isinstance(data, dict) or not _is_list_of_named(data.get("sources")):
        return saved
    names = [source["name"] for source in data["sources"]]
    sources = {
        source["name"]: {key: value for key, value in source.items() if key != "name"} | {"seed": place}
        for place, source in enumerate(data["sources"])
    }
    if len(sources) < len(names):
        return saved
    changed = data | {"sources": sources}
    if "kind_weights" in data:
        changed["kind_weights"] = _by_name(data["kind_weights"], _KINDS)
    if isinstance(data.get("weight_changes"), list):
        changed["weight_changes"] = [_change(change, names) for change in data["weight_changes"]]
    return saved | {"data": changed}


def _change(change: Any, names: list[str]) -> Any:
    """Names the weights of one change."""
    if not isinstance(change, dict):
        return change
    named = {"weights": names, "kind_weights": _KINDS}
    return {key: _by_name(value, named[key]) if key in named else value for key, value in change.items()}


def _by_name(weights: Any, names: Sequence[str]) -> Any:
    """Turns one weight per name into a mapping."""
    return (
        dict(zip(names, weights, strict=True))
        if isinstance(weights, list) and len(weights) == len(names)
        else weights
    )


def _is_list_of_named(sources: Any) -> bool:
    """Tells whether `sources` are in the earlier form."""
    return isinstance(sources, list) and all(
        isinstance(source, dict) and isinstance(source.get("name"), str) for source in sources
    )
