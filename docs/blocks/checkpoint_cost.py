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
        f"The model has {found['parameters'] / 1e6:.0f} million parameters in fp32 on one rank under ZeRO-1. "
        f"Values are medians of {found['rounds']} rounds that alternate between the ways of saving, on "
        f"{found['cores']} cores of a CPU ({found['machine']}) with a local disk, torch {found['torch']}. "
        f"The machine was doing other work (load {found['load']:.0f}), so compare rows with each other only."
        f"\n\nWhile flava_ds writes in the background, a step takes {slower:.2f} times as long as usual, "
        f"because the writer and training share the cores. In total a save costs {lost:.1f} s of training "
        "here. When training runs on a GPU, the host's cores are free for the writer; that case has not been "
        "measured."
    )
    header = ["way of saving", "training pauses for", "on disk after", "bytes"]
    rows = [
        [
            paused(name),
            f"{way['stands_s']:.2f} s",
            f"{way['on_disk_s']:.1f} s",
            f"{way['bytes'] / 2**30:.2f} GiB",
        ]
        for name, way in found["ways"].items()
    ]
    return f"{text}\n\n{markdown_table(header, rows)}"


def paused(name: str) -> str:
    """Names a way of saving as the page does."""
    return name.replace("training stands", "training is paused")


BLOCKS = {"checkpoint_cost": checkpoint_cost}
