"""docs/multi_node.md: a run on two hosts beside the same on one, from `benchmarks/two_hosts.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results


def two_hosts(root: Path) -> str:
    """Shows whether the curves are equal, what crossed the link, and each launcher's command and log."""
    found = read_results(root, "two_hosts")
    lines, logs = [], []
    for row in found["rows"]:
        least = found["steps"] * row["gradient_bytes"]
        sent = ", ".join(f"{size / 2**20:.1f} MiB" for size in row["sent"])
        lines.append(
            [
                row["launcher"],
                "equal, bit by bit" if row["equal"] else "**different**",
                sent,
                f"{least / 2**20:.1f} MiB",
            ]
        )
        logs.append(f"```\n$ {row['command']}\n" + "\n".join(row["log"]) + "\n```")
    header = [
        "launcher",
        "losses, accuracies and gradient norms against one host",
        "sent by each host",
        "at least, for the gradients",
    ]
    what = (
        f"{found['steps']} steps of `flava_debug` on {len(found['hosts'])} hosts with one rank each, torch "
        f"{found['torch']}, deepspeed {found['deepspeed']}:"
    )
    return "\n\n".join([what, markdown_table(header, lines), *logs])


BLOCKS = {"two_hosts": two_hosts}
