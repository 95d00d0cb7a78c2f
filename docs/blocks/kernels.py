"""docs/kernels.md: what the kernels compile to, from kernels/aot.csv, which `make kernels` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from flava_kernels import OPS
from flava_kernels.aot_table import read_csv
from flava_kernels.op import DTYPES, Op

from blocks import markdown_table

GPU = "sm_90"
"""The architecture whose rows the page shows; the file has all."""

Lines = list[dict[str, str]]

RESOURCES = ("issue", "special", "matrix", "cache", "memory")

COLUMNS: dict[str, Callable[[dict[str, str]], str]] = {
    "kernel": lambda line: line["name"],
    "warps": lambda line: line["num_warps"],
    "registers": lambda line: line["registers"],
    "spills, B": lambda line: line["spilled_bytes"],
    "shared, KiB": lambda line: f"{int(line['shared']) / 1024:.1f}",
    "blocks, limit": lambda line: f"{line['blocks']}, {line['limited_by']}",
    "matrix instructions / dots": lambda line: (
        f"{line['matrix_instructions']}/{line['dots']}" if line["dots"] != "0" else "-"
    ),
    "16-byte loads / loads": lambda line: f"{line['wide_loads']}/{line['loads']}",
    "loop instructions": lambda line: line["loop_instructions"],
    "cycles: issue / special / matrix / cache / memory": lambda line: " / ".join(
        line[f"{what}_cycles"] for what in RESOURCES
    ),
    "bound by": lambda line: line["bound"],
    "share of the roof": lambda line: f"{float(line['share']):.2f}",
}


def compiled(root: Path) -> Lines:
    """Reads the committed table."""
    return read_csv(root / "kernels" / "aot.csv")


def in_fp32(line: dict[str, str]) -> bool:
    """Tells configurations of fp32 from half-precision ones with fp32 parameters,
    "bf16.768.fp32_parameters"."""
    return ".fp32." in line["name"] + "."


def summary(root: Path) -> str:
    """Counts by Triton version and architecture."""
    lines, rows = compiled(root), []
    for version, arch in dict.fromkeys((line["triton"], line["arch"]) for line in lines):
        some = [line for line in lines if (line["triton"], line["arch"]) == (version, arch)]
        half = [line for line in some if not in_fp32(line)]
        spilling = [line for line in half if line["spilled_bytes"] != "0"]
        rows.append(
            [
                version,
                arch,
                len(some),
                max(int(line["registers"]) for line in some),
                len(spilling),
                max(int(line["shared"]) for line in some) // 1024,
            ]
            + [
                max(int(line["tensor_memory"]) for line in some),
                sum(int(line["atomics"]) for line in some),
                sum(bool(line["faults"]) for line in some),
            ]
        )
    header = [
        "Triton",
        "GPU",
        "configurations",
        "most registers",
        "16-bit ones that spill",
        "most shared, KiB",
        "most tensor memory",
        "atomics",
        "faults",
    ]
    return markdown_table(header, rows)


def rows_of_gpu(root: Path) -> str:
    """Lists the bf16 configurations of GPU, and those without a dtype, as the newest Triton in the file
    compiles them.
    """
    lines = compiled(root)
    newest = max((line["triton"] for line in lines), key=lambda version: tuple(map(int, version.split("."))))
    shown = [
        line
        for line in lines
        if (line["triton"], line["arch"]) == (newest, GPU)
        and ".fp16" not in line["name"]
        and not in_fp32(line)
    ]
    return f"Triton {newest}, {GPU}:\n\n" + markdown_table(
        list(COLUMNS), [[cell(line) for cell in COLUMNS.values()] for line in shown]
    )


def limits(root: Path) -> str:
    """Lists the errors that tests allow every operator, by dtype; the third number where parameters may stay
    fp32.
    """

    def cell(op: Op, dtype: torch.dtype) -> str:
        allowed = op.limits[dtype]
        third = (allowed.fp32_gradient,) if any(case.fp32 for case in op.cases()) else ()
        return " / ".join(f"{limit:.2g}" for limit in (allowed.result, allowed.gradient, *third))

    rows = [[name, *(cell(op, dtype) for dtype in DTYPES)] for name, op in OPS.items()]
    return markdown_table(["operator", *(str(dtype).removeprefix("torch.") for dtype in DTYPES)], rows)


BLOCKS = {"kernel_limits": limits, "aot_summary": summary, "aot_rows": rows_of_gpu}
