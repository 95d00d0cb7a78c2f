"""docs/checkpoints.md: what a checkpoint costs a run, from `benchmarks/checkpoint_cost.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def checkpoint_cost(root: Path) -> str:
    """Compares the ways of saving."""
    found = read_results(root, "checkpoint_cost")
    ours = found["ways"]["flava_ds in the background"]
    slower = ours["step_meanwhile_s"] / found["undisturbed_step_s"]
    lost = ours["on_disk_s"] - (ours["on_disk_s"] - ours["stands_s"]) / slower
    text = (
        f"{found['parameters'] / 1e6:.0f} million parameters on one rank, ZeRO-1, fp32; medians of "
        f"{found['rounds']} rounds that take the ways in turn, "
        f"on {found['cores']} cores of a CPU ({found['machine']}) and its local disk, torch "
        f"{found['torch']}. The machine did other work meanwhile "
        f"(load {found['load']:.0f}), so compare the rows with each other. While ours writes in the "
        f"background, a step takes {slower:.2f} times as long as "
        f"an undisturbed one, since writer and training share the cores: a save costs {lost:.1f} s of "
        "training here, all in all. Where a GPU trains, the "
        "host's cores are free for the writer; that has not been measured."
    )
    header = ["way of saving", "training stands", "on disk after", "bytes"]
    rows = [
        [name, f"{way['stands_s']:.2f} s", f"{way['on_disk_s']:.1f} s", f"{way['bytes'] / 2**30:.2f} GiB"]
        for name, way in found["ways"].items()
    ]
    return f"{text}\n\n{markdown_table(header, rows)}"


BLOCKS = {"checkpoint_cost": checkpoint_cost}
