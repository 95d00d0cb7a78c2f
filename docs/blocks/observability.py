"""docs/observability.md: the fields of a log record, and how the objectives of a run pull."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results
from flava_ds.watching.log_fields import FIELDS


def log_fields(_: Path) -> str:
    """Lists key, unit, name for Prometheus, and meaning of every field."""
    rows = [
        [
            f"`{field.name}`",
            field.unit or "-",
            "-" if field.kind == "text" else f"`{field.metric}`",
            field.meaning,
        ]
        for field in FIELDS
    ]
    return markdown_table(["key", "unit", "for Prometheus", "meaning"], rows)


def objective_gradients(root: Path) -> str:
    """Returns the cosines, norms and weights of benchmarks/objective_gradients.py."""
    found = read_results(root, "objective_gradients")
    rows = []
    for name, own in found["cosines"].items():
        first, second, encoder = name.split("/")
        if not any(own["halves"]):  # one of them does not reach this encoder
            continue
        shares = [f"{value:+.2f}" for value in own["halves"]]
        rows.append([f"`{first}`, `{second}`", _encoder(encoder), *shares, f"{100 * own['below']:.0f} %"])
    cosines = markdown_table(
        ["objectives", "encoder", "cosine, first half", "second half", "of the measurements below 0"], rows
    )
    rows = []
    for name, configured in found["configured"].items():
        norms = {
            _encoder(key.split("/")[1]): own
            for key, own in found["norms"].items()
            if key.split("/")[0] == name and max(own) > 0
        }
        pulls = "; ".join(f"{encoder} {own[0]:.2g}, {own[1]:.2g}" for encoder, own in norms.items())
        learned = [f"{weights.get(name, configured):.2f}" for weights in found["weights"].values()]
        rows.append([f"`{name}`", pulls, f"{configured:g}", *learned])
    header = ["objective", "norm of its weighted gradient on each encoder, first and second half", "weight"]
    norms_table = markdown_table([*header, *(f"at the end with {name}" for name in found["weights"])], rows)
    return f"{cosines}\n\n{norms_table}"


def _encoder(name: str) -> str:
    return name.removesuffix("_encoder")


BLOCKS = {"log_fields": log_fields, "objective_gradients": objective_gradients}
