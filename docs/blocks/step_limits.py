"""docs/kernels.md: a CPU step beside its own matrix products, from benchmarks/results/step_limits.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results
from blocks.readme import LENGTHS

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}


def step_limits(root: Path) -> str:
    """One table per machine, with a row per length of captions and precision."""
    found = read_results(root, "step_limits")["rows"]
    machines = dict.fromkeys(row["machine"] for row in found)
    return "\n\n".join(_of_machine([row for row in found if row["machine"] == name]) for name in machines)


def _of_machine(found: list[dict[str, Any]]) -> str:
    rows = []
    for row in found:
        fp32 = [f"{row[f'fp32_over_{what}']:.2f}" for what in ("step", "products")]
        rows.append(
            [
                LENGTHS[row["lengths"]],
                PRECISIONS[row["precision"]],
                f"{row['step_seconds']:.2f}",
                f"{row['products_seconds']:.2f}",
                f"{100 * row['share_of_gemm_rate']:.0f} %",
                *(f"{row[f'huggingface_over_{what}']:.2f}" for what in ("step", "products")),
                *(fp32 if row["precision"] == "bfloat16" else ("", "")),
            ]
        )
    header = ["captions", "precision", "a step, s", "its products alone, s", "of the GEMM rate"]
    header += ["Hugging Face in fp32 over it", "at most", "fp32 over it", "at most"]
    about = found[0]
    return (
        f"{about['threads']} threads of {about['machine']}, {about['rounds']} rounds, torch "
        f"{about['torch']}, transformers {about['transformers']}:\n\n{markdown_table(header, rows)}"
    )


BLOCKS = {"step_limits": step_limits}
