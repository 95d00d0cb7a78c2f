"""docs/scaling.md: real steps and runs on a CPU (plan_validation.py), and what plans take (plan_speed.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results

PARTS = {
    "products": ("matrix products",),
    "other operators": ("memory-bound kernels", "attention", "image codebook", "second contrastive pass"),
    "between operators": ("waiting for the host",),
    "update": ("optimizer",),
    "gloo": ("gradients, exposed", "weights", "contrastive gather", "counts"),
    "loader": ("waiting for the loader",),
    "stragglers": ("stragglers",),
}
"""Columns of the table of parts: what each adds up."""
CAUSES = ("steps", "checkpoints", "lost work", "detection and restart", "wall")


def plan_steps(root: Path) -> str:
    """Lists measured and forecast steps of every kind, and the mean step of every run."""
    found = read_results(root, "plan_time")
    rows = []
    for row in found["steps"]:
        cells = [row["title"], row["ranks"]]
        kinds = {kind["source"]: kind for kind in row["kinds"]}
        cells += [beside(kinds.get(source)) for source in ("pair", "image", "text")]
        rows.append([*cells, beside(row), f"**{row['forecast'] / row['measured'] - 1:+.0%}**"])
    errors = sorted(abs(row["forecast"] / row["measured"] - 1) for row in found["steps"])
    header = ["run", "ranks", "pair", "image", "text", "mean step", "difference"]
    return (
        f"{markdown_table(header, rows)}\n\nms of a step, forecast / measured, on {found['cores']} cores "
        f"({found['processor']}, torch {found['torch']}). The median error of the mean step is "
        f"{errors[len(errors) // 2]:.0%}, the largest {errors[-1]:.0%}."
    )


def beside(found: dict[str, Any] | None) -> str:
    """Writes a forecast and what was measured."""
    return "" if found is None else f"{found['forecast']:.0f} / {found['measured']:.0f}"


def plan_step_parts(root: Path) -> str:
    """Lists the parts of the forecast mean steps."""
    found = read_results(root, "plan_time")
    rows = [
        [row["title"], row["ranks"], *(f"{sum(row['parts'][p] for p in own):.0f}" for own in PARTS.values()),
         f"{row['forecast']:.0f}"]
        for row in found["steps"]
    ]  # fmt: skip
    return markdown_table(["run", "ranks", *PARTS, "mean step, ms"], rows)


def plan_runs(root: Path) -> str:
    """Lists where the wall time of real runs went, beside the simulator's account."""
    found = read_results(root, "plan_time")["runs"]
    if not found:
        raise FileNotFoundError(2, "not measured", "plan_time.json")
    rows = []
    for run in found:
        real, simulated = run["real"], run["simulated"]
        cells = [f"{simulated[cause]:.1f} / {real[cause]:.1f}" for cause in CAUSES]
        difference = f"**{simulated['wall'] / real['wall'] - 1:+.0%}**"
        rows.append([run["ranks"], *cells, difference, f"{real['others']:.0%}"])
    return markdown_table(["ranks", *CAUSES, "difference", "cores that others used"], rows)


def plan_speed(root: Path) -> str:
    """Lists what plans of a recipe take, the first one and later ones."""
    found = read_results(root, "plan_speed")
    rows = [
        [row["title"], f"{row['seconds']:.1f}", "yes" if row["torch"] else "no"] for row in found["plans"]
    ]
    table = markdown_table(["plan", "CPU seconds", "loads torch"], rows)
    return f"{table}\n\nMedians of {found['rounds']}, in processes of their own."


BLOCKS = {
    "plan_speed": plan_speed,
    "plan_steps": plan_steps,
    "plan_step_parts": plan_step_parts,
    "plan_runs": plan_runs,
}
