"""docs/comparison.md: what each family reached in `flava-ds compare`, and the table of the paper."""

from __future__ import annotations

from pathlib import Path

from blocks import campaign_results, markdown_table
from flava_ds.campaigns.comparison import ROWS, table_rows
from flava_ds.evaluation.paper_table import RIVAL_NUMBERS
from flava_ds.evaluation.paper_table import ROWS as OF_PAPER

SAME_CODE = ("CLIP-400M", "CLIP on PMD", "FLAVA")
"""Columns of the paper's table of all tasks, for which its authors ran the evaluations."""


def comparison(root: Path) -> str:
    """Lists the rows so far. Raises: FileNotFoundError without any."""
    found = campaign_results(root, "comparison")
    header, *rows = table_rows(found)
    done = [result for results in found.values() for result in results]
    training = sum(result["training_seconds"] for result in done) / 3600
    measuring = sum(result["seconds_since_last_start"]["measure"] for result in done) / 3600
    table = markdown_table(header, [[f"`{row[0]}`" if row[0] in ROWS else row[0], *row[1:]] for row in rows])
    time = f"{training:.1f} hours of training, and at least {measuring:.1f} of measuring"
    runs = f"{len(done)} of {3 * len(ROWS)} runs are finished: {time}, each run counted from its last start."
    return f"{table}\n\n{runs}"


def comparison_paper(root: Path) -> str:
    """Lists what the paper has of the families, in per cent."""
    columns = {
        "VQAv2": ("vqav2", "vqa_accuracy"),
        "SNLI-VE": ("snli_ve", "accuracy"),
        "SST-2": ("glue_sst2", "accuracy"),
        "MNLI": ("glue_mnli", "accuracy"),
        "ImageNet, linear": ("imagenet_probe", "accuracy"),
        "COCO, caption to image, R@1": ("coco_retrieval", "text_to_image_recall_at_1"),
    }
    shown: dict[str, dict[str, float]] = {}
    for (task, number, _), (system, share, _) in sorted(RIVAL_NUMBERS.items(), key=lambda own: own[1][2]):
        name, *_ = system.split(" (")
        shown.setdefault(name, {})[f"{task} {number}"] = share
    for row in OF_PAPER:
        for system in SAME_CODE:
            if (share := row.values[system]) is not None:
                shown.setdefault(system, {})[f"{row.task} {row.number}"] = share
    rows = [
        [
            system,
            *(f"{100 * own[name]:.1f}" if name in own else "" for name in map(" ".join, columns.values())),
        ]
        for system, own in shown.items()
    ]
    return markdown_table(["system", *columns], rows)


BLOCKS = {"comparison": comparison, "comparison_paper": comparison_paper}
