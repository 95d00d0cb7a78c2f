"""docs/evaluation.md: the published data sets from the code, and tables of `flava-ds evaluate --suite` on
real sets and on miniatures.
"""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results
from flava_ds.evaluation.datasets.published_images import PublishedImages
from flava_ds.report.suite_page import tables


def published_sets(root: Path) -> str:
    """Lists the published data sets: their task, folder, layout and ways to split them."""
    from flava_ds.evaluation.registry import tasks
    from flava_ds.evaluation.suite import ways

    found = {name: task.data for name, task in tasks().items() if name.endswith("_probe")}
    rows = [
        [f"`{name}`", f"`{data.folder}/`", data.layout.replace("*", r"\*"), ", ".join(ways(data))]
        for name, data in sorted(found.items())
        if isinstance(data, PublishedImages)
    ]
    return markdown_table(["task", "folder under ROOT", "what it contains", "splits"], rows)


def real_suite(root: Path) -> str:
    """Shows a trained and an untrained model on the sets that `flava-ds prepare fetch` gets."""
    report = read_results(root, "suite_real")
    trained, untrained = report["trained"], report["untrained"]
    rows = []
    for task, result in trained["tasks"].items():
        for number, score in result["scores"].items():
            other = untrained["tasks"][task]["scores"][number]
            cells = (_cell(score, other), _cell(other, score))
            rows.append([f"`{task}`", number.replace("_", " "), *cells, f"{score['n']:,}"])
    table = markdown_table(["task", "number", "trained, %", "untrained, %", "samples"], rows)
    return (
        f"{table}\n\nModel {trained['model']} at step {trained['step']:,}, {trained['precision']}; at most "
        f"{trained['limit']:,} samples of each split. In brackets: 95 % intervals; the higher number is bold "
        "where the two do not overlap."
    )


def _cell(score: dict, other: dict) -> str:
    value, own, others = f"{100 * score['value']:.1f}", score["interval"], other["interval"]
    if own is None:
        return f"{value} (-)"
    bold = "**" if others is not None and own[0] > others[1] else ""
    return f"{bold}{value}{bold} ({100 * own[0]:.1f} to {100 * own[1]:.1f})"


def miniature_suite(root: Path) -> str:
    """Shows the numbers of the paper's tasks on miniatures of their data."""
    report = read_results(root, "suite_miniatures")
    rows = [
        [table.title, line.title, f"`{line.task}`", line.splits, line.value, line.samples]
        for table in tables(report)
        for line in table.lines
        if not line.is_average
    ]
    return markdown_table(["domain", "the paper's row", "task", "split", "%", "samples"], rows)


BLOCKS = {"published_sets": published_sets, "real_suite": real_suite, "miniature_suite": miniature_suite}
