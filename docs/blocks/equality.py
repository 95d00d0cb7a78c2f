"""docs/equality.md: how far every way to run is from plain torch, and what two passes cost, from
`benchmarks/equality.py` and `two_pass.py`.
"""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results

DIFFERENCES = {
    "losses": "losses",
    "gradient norm": "norms",
    "gradients": "gradients",
    "parameters after 20 steps": "parameters",
}


def equality(root: Path) -> str:
    """Lists the largest relative differences of every run whose model computes in fp64."""
    found = read_results(root, "equality")
    rows = [
        [*setting(row), *(f"{row[name]:.1e}" for name in DIFFERENCES.values())]
        for row in found["rows"]
        if row["arithmetic"] == "fp64"
    ]
    largest = {
        name: max(row[name] for row in found["rows"] if row["arithmetic"] == "fp64")
        for name in DIFFERENCES.values()
    }
    rows.append(["**largest**", "", "", "", "", *(f"**{value:.1e}**" for value in largest.values())])
    header = [
        "ranks",
        "DeepSpeed",
        "micro-batches per rank",
        "activation checkpointing",
        "idle parameters",
        *DIFFERENCES,
    ]
    return (
        f"{found['steps']} steps of {found['batch']} samples, with gradients compared tensor by tensor in "
        f"{found['observed']} of them; torch {found['torch']}, deepspeed {found['deepspeed']}:\n\n"
        f"{markdown_table(header, rows)}"
    )


def setting(row: dict) -> list[str]:
    """Names how a run was executed."""
    return [
        row["ranks"],
        row["stage"].replace("_offload", ", optimizer offloaded"),
        row["accumulation"],
        "on" if row["checkpointing"] else "off",
        row["idle"],
    ]


def equality_conditions(root: Path) -> str:
    """Says what samples the steps bring."""
    return markdown_table(
        ["steps", "samples"],
        [[name, what] for name, what in read_results(root, "equality")["conditions"].items()],
    )


def equality_fp32(root: Path) -> str:
    """Lists the runs whose model computes in fp32, as it does in training."""
    rows = [row for row in read_results(root, "equality")["rows"] if row["arithmetic"] == "fp32"]
    return markdown_table(
        ["ranks", "DeepSpeed", "losses", "gradient norm", "gradients", "parameters after 20 steps"],
        [
            [row["ranks"], row["stage"], *(f"{row[name]:.1e}" for name in DIFFERENCES.values())]
            for row in rows
        ],
    )


def two_pass_memory(root: Path) -> str:
    """Lists peaks of memory by number of micro-batches."""
    found = read_results(root, "two_pass")
    rows = [
        [
            row["way"],
            row["micro_batches"],
            row["micro_batches"] * found["batch"],
            *(f"{row[name]:.1f}" for name in ("peak_mib", "features_mib")),
        ]
        for row in found["memory"]
    ]
    return markdown_table(
        [
            "way",
            "micro-batches",
            "samples in the loss",
            "peak of the step, MiB",
            "of it features and their gradients, MiB",
        ],
        rows,
    )


def two_pass_time(root: Path) -> str:
    """Lists the price of the second pass in time."""
    found = read_results(root, "two_pass")
    rows = []
    for row in found["time"]:
        exact, local = (f"{value:.2f}" for value in row["seconds"])
        low, high = row["range"]
        rows.append(
            [
                row["objectives"],
                local,
                exact,
                f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                f"{row['floor']:.2f}",
            ]
        )
    table = markdown_table(["objectives", "one pass, s", "two passes, s", "ratio", "floor"], rows)
    return (
        f"{table}\n\n{found['micro_batches']} micro-batches of "
        f"{found['batch']} pairs, {found['rounds']} rounds, one thread of {found['machine']}, torch "
        f"{found['torch']}."
    )


BLOCKS = {
    "equality": equality,
    "equality_conditions": equality_conditions,
    "equality_fp32": equality_fp32,
    "two_pass_memory": two_pass_memory,
    "two_pass_time": two_pass_time,
}
