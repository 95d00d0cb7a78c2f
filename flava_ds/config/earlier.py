"""Converts saved configurations of earlier versions, so that their runs continue with the same data order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_KINDS = ("pair", "image", "text")
"""The order of kinds in earlier versions, where kind_weights was a list."""


def modernised(saved: Any) -> Any:
    """Returns a configuration's JSON in today's form; leaves whatever it does not recognise to the reader.

    Earlier versions had one family, one optimizer, one schedule, and six objectives identified by their
    names. Sources were a list: a source's seed was its place, and weights by source were in the same order.
    """
    return _sources_by_name(_with_types(saved))


def _with_types(saved: Any) -> Any:
    """Adds type tags, which sections with only one variant did not need."""
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict) or "type" in saved["model"]:
        return saved
    changed = dict(saved)
    for section, tag in (("model", "flava"), ("optimizer", "adamw"), ("schedule", "cosine")):
        if isinstance(saved.get(section), dict):
            changed[section] = {"type": tag, **saved[section]}
    if isinstance(saved.get("objectives"), dict):
        objectives = saved["objectives"].items()
        changed["objectives"] = {
            name: {"type": name, **own} if isinstance(own, dict) else own for name, own in objectives
        }
    return changed


def _sources_by_name(saved: Any) -> Any:
    """Converts a list of sources, and everything ordered like it, into mappings."""
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
    """Converts the weights of one change to mappings."""
    if not isinstance(change, dict):
        return change
    named = {"weights": names, "kind_weights": _KINDS}
    return {key: _by_name(value, named[key]) if key in named else value for key, value in change.items()}


def _by_name(weights: Any, names: Sequence[str]) -> Any:
    """Converts a list of one weight per name into a mapping."""
    if isinstance(weights, list) and len(weights) == len(names):
        return dict(zip(names, weights, strict=True))
    return weights


def _is_list_of_named(sources: Any) -> bool:
    """Returns whether `sources` has the earlier form."""
    return isinstance(sources, list) and all(
        isinstance(source, dict) and isinstance(source.get("name"), str) for source in sources
    )
