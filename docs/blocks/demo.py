"""docs/demo.md: how the committed codebook was trained, and what each choice of the demo's recipe is worth
(`benchmarks/demo_ablation.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

from blocks import markdown_table, read_results
from flava_ds.evaluation.table import percent
from flava_ds.recipes.demo import CODEBOOK


def ablation(root: Path) -> str:
    """Lists the choices with what they reach in a training style held out, and what a pair step costs."""
    results = read_results(root, "demo_ablation")
    rows = [
        [
            row["name"],
            percent(row["colour_top1"]),
            percent(row["colour_top5"]),
            f"{row['colour_nats']:.2f}",
            percent(row["black_and_white_top5"]),
            f"{1000 * row['pair_step_cpu_s']:.0f}",
        ]
        for row in results["rows"]
    ]
    header = ["choice", "top-1", "top-5", "nats", "top-5 in black and white", "ms for 64 pairs"]
    return (
        f"{markdown_table(header, rows)}\n\nEach row was trained on {results['pairs']:,} pairs and tested on "
        f"the style `{results['held_out']}`.\n"
    )


def codebook(root: Path) -> str:
    """Shows the curve of the committed codebook, which lies in the package."""
    record = json.loads(CODEBOOK.with_suffix(".json").read_text(encoding="utf-8"))
    last = record["report"]
    rows = [
        [point["step"], f"{point['mse']:.4f}", f"{point['perplexity']:.0f}", point["used_codes"]]
        for point in record["curve"]
    ]
    return (
        f"{markdown_table(['step', 'mean squared error', 'perplexity', 'codes used'], rows)}\n\n"
        f"Measured on {record['training']['eval_samples']} held-out pictures of "
        f"{record['codebook']['image_size']} x {record['codebook']['image_size']} pixels, with hard codes. "
        "For comparison: painting every picture in the same colour gives an error of "
        f"{last['mean_color_mse']:.4f}, painting each in its own mean colour {last['image_mean_mse']:.4f}. "
        f"The codebook has {last['vocab_size']} codes and was trained with seed {record['seed']}.\n"
    )


BLOCKS = {"demo_ablation": ablation, "demo_codebook": codebook}
