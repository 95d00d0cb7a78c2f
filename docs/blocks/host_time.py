"""docs/kernels.md: what a call of an operator costs the host, from benchmarks/results/host_time.json."""

from __future__ import annotations

from collections import Counter
from math import fsum
from pathlib import Path

from blocks import markdown_table, read_results

WAYS = ("torch.library", "ours", "bare")


def host_time(root: Path) -> str:
    """One row per operator, and the operators of a micro-step of each kind in milliseconds."""
    results = read_results(root, "host_time")
    ways = results["ways"]
    rows = [[name, *(f"{ways[way][name]['microseconds']:.0f}" for way in WAYS)] for name in ways["bare"]]
    steps = []
    for kind, counts in results["steps"].items():
        calls = Counter({name.removesuffix("_forward"): count for name, count in counts.items()})
        whole = {
            way: fsum(calls[name] * found["microseconds"] for name, found in ways[way].items()) / 1e3
            for way in WAYS
        }
        before, after = (whole[way] - whole["bare"] for way in WAYS[:2])
        ours = sum(calls[name] for name in ways["bare"])
        steps.append(
            [
                kind,
                ours,
                counts["plain"],
                *(f"{whole[way]:.1f}" for way in WAYS),
                f"{before:.2f} / {after:.2f}",
            ]
        )
    of_calls = markdown_table(["operator, us", *WAYS], rows)
    header = ["micro-step of flava_base", "our calls", "other operators"]
    header += [f"{way}, ms" for way in WAYS] + ["above bare: torch.library / ours, ms"]
    blocks = results["blocks"]
    both = [f"{blocks[way]['microseconds']:.0f}" for way in ("eager", "compiled")]
    of_blocks = (
        f"A whole block of a transformer, forward and backward, takes {both[0]} us layer by layer "
        f"and {both[1]} us compiled (`training.compile_blocks`), its plain operators on a few rows of a CPU "
        "included."
    )
    versions = f"torch {results['torch']}, triton {results['triton']}:"
    return "\n\n".join([versions, of_calls, markdown_table(header, steps), of_blocks])


def host_step(root: Path) -> str:
    """The parts of a whole step, with and without the engine, and the same on the machine of host_time."""
    step, alone = read_results(root, "host_step"), read_results(root, "host_time")
    slower = step["operators"]["block_us"] / alone["blocks"]["eager"]["microseconds"]
    host, narrowest = step["host"], step["widths"][0]
    rows = []
    shown = {
        "layers": "the engine's step, ZeRO-1, layer by layer",
        "engine": "the engine's step, blocks as one node",
        "no_overlap": "the same with `zero1_no_overlap`",
        "module": "the module alone",
    }
    for who, name in shown.items():
        parts = [host[who].get(part) for part in ("forward", "backward", "update")]
        whole, bound = fsum(host[who].values()), fsum(narrowest[who].values())
        cells = ["" if ms is None else f"{ms:.1f}" for ms in parts]
        rows.append([name, *cells, f"{whole:.1f}", f"{bound:.1f}", f"{whole / slower:.1f}"])
    ours = step["operators"]["ours_ms"]
    rows.append(["our operators one by one", "", "", "", f"{ours:.1f}", "", f"{ours / slower:.1f}"])
    header = ["ms of CPU time, pairs", "forward", "backward", "update", "together", "at most"]
    header += ["without the load"]
    node = step["operators"]["one_node_us"] / step["operators"]["block_us"]
    told = (
        f"{step['machine']}, loaded by other work, torch {step['torch']}, triton {step['triton']}; a block "
        f"of a transformer took {slower:.1f} times as long there as above, which the last column takes out. "
        f"As one node it took {100 * node:.0f} % of the time of its layers."
    )
    return "\n\n".join([markdown_table(header, rows), told])


BLOCKS = {"host_time": host_time, "host_step": host_step}
