"""docs/evaluation.md: the published data sets from the code, and a suite's table on real ones from
`flava-ds evaluate --suite`.
"""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results
from flava_ds.evaluation.datasets.published_images import PublishedImages


def published_sets(root: Path) -> str:
    """Lists the published data sets: their task, folder, layout and ways to split them."""
    from flava_ds.evaluation.registry import tasks

    found = {name: task.data for name, task in tasks().items() if name.endswith("_probe")}
    rows = [
        [f"`{name}`", f"`{data.folder}/`", data.layout.replace("*", r"\*"), ", ".join(_ways(data))]
        for name, data in sorted(found.items())
        if isinstance(data, PublishedImages)
    ]
    return markdown_table(["task", "folder under ROOT", "what it contains", "splits"], rows)


def _ways(data: PublishedImages) -> list[str]:
    return [variant.name for variant in data.variants]


def real_suite(root: Path) -> str:
    """Shows the numbers of the sets that `flava-ds prepare fetch` gets."""
    report = read_results(root, "suite_real")
    rows = [
        [f"`{task}`", number.replace("_", " "), _percent(score["value"]), _interval(score), f"{score['n']:,}"]
        for task, result in report["tasks"].items()
        for number, score in result.get("scores", {}).items()
    ]
    facts = {
        "Model": f"{report['model']} at step {report['step']}, {report['precision']}",
        "at most": f"{report['limit']:,} samples of each split" if report["limit"] else "all samples",
    }
    said = "; ".join(f"{name} {value}" for name, value in facts.items())
    table = markdown_table(["task", "number", "%", "95 % interval", "samples"], rows)
    return f"{table}\n\n{said}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(score: dict) -> str:
    return " to ".join(map(_percent, score["interval"])) if score["interval"] else ""


BLOCKS = {"published_sets": published_sets, "real_suite": real_suite}
