"""docs/scaling.md: the planner against what is known, from `benchmarks/plan_validation.py`."""

from __future__ import annotations

import json
from pathlib import Path

from blocks import markdown_table, ranged, read_results
from flava_ds.scaling.assumptions import RANGES
from flava_ds.scaling.failures import RATES
from flava_ds.scaling.hardware import GPUS, NETWORKS


def plan_work(root: Path) -> str:
    """Lists the traced work of every recipe beside the family's closed form."""
    found = read_results(root, "plan_validation")
    rows = []
    for recipe in found["recipes"]:
        built = (
            ""
            if recipe["built"] is None
            else "equal"
            if recipe["built"] == recipe["parameters"]
            else "differs"
        )
        for kind in recipe["kinds"]:
            rows.append(
                [
                    f"`{recipe['recipe']}`",
                    kind["kind"],
                    f"{recipe['parameters']:,}",
                    built or "not built",
                    f"{kind['gflop']:.2f}",
                    f"{kind['traced'] / kind['gflop'] - 1:+.2%}",
                    f"{kind['saved_mib']:.2f}",
                    f"{kind['operators']} ({kind['ours']})",
                ]
            )
    header = ["recipe", "step", "parameters", "built model", "GFLOP per sample", "traced"]
    header += ["MiB kept per sample", "operators (ours)"]
    equal = found["communication"]
    return (
        f"{markdown_table(header, rows)}\n\nBytes of collectives: of the {equal['rows']} rows of "
        f"[communication.md](communication.md) with the settings as shipped, {equal['equal']} are equal "
        "to the byte."
    )


def plan_memory(root: Path) -> str:
    """Lists measured and forecast peaks of real steps on a CPU."""
    found = read_results(root, "plan_validation")["memory"]
    if not found:
        raise FileNotFoundError(2, "not measured", "plan_validation.json")
    rows = [
        [
            row["stage"],
            row["ranks"],
            "2 in fp32" if row["turns"] > 1 else "",
            f"{row['measured'] / 2**20:.1f}",
            f"{row['forecast'] / 2**20:.1f}",
            f"{row['forecast'] / row['measured'] - 1:+.1%}",
        ]
        for row in found
    ]
    header = ["ZeRO", "ranks", "micro-batches added up", "measured, MiB", "forecast, MiB", "difference"]
    return markdown_table(header, rows)


def plan_collectives(root: Path) -> str:
    """Lists busbw of all_reduce, planned / published, by size."""
    found = read_results(root, "plan_validation")["collectives"]
    sizes = ("1", "4", "16", "64", "256", "1024", "16384")
    rows = []
    for row in found:
        cells = [f"{row['planned'][s]:.0f} / {row['busbw'][s]:g}" if s in row["busbw"] else "" for s in sizes]
        rows.append([f"{row['gpus']} x {row['gpu']}", row["source"], row["use"], *cells])
    errors = sorted(
        abs(row["planned"][s] / row["busbw"][s] - 1)
        for row in found
        if row["use"] == "test"
        for s in row["busbw"]
    )
    table = markdown_table(["GPUs", "source", "use", *(f"{size} MiB" for size in sizes)], rows)
    return (
        f"{table}\n\nOn the test rows the median error is {errors[len(errors) // 2]:.0%}, nine of ten are "
        f"within {errors[int(0.9 * len(errors))]:.0%}."
    )


def plan_published(root: Path) -> str:
    """Lists published utilisation beside one efficiency for each GPU and era."""
    found = read_results(root, "plan_validation")["published"]
    rows = []
    for row in found["rows"]:
        error = f"{row['planned'] / row['mfu'] - 1:+.0%}" if row["use"] == "test" else "fitted"
        where = f"{row['gpus']} x {row['gpu']}"
        rows.append([row["run"], where, row["era"], f"{row['mfu']:.1f}", f"{row['planned']:.1f}", error])
    table = markdown_table(["run", "GPUs", "era", "MFU, %", "one number per GPU and era, %", "error"], rows)
    words = {
        name: f"{found[name]:.0%}" for name in ("median_error", "error_90", "median_spread", "spread_90")
    }
    return (
        f"Median error on the {found['test_rows']} test rows: {words['median_error']}; nine of ten are "
        f"within {words['error_90']}. The publishers' own {found['repeats']} repeats of one configuration "
        f"lie {words['median_spread']} apart at the median, and up to {words['spread_90']}."
        f"\n\n{table}"
    )


def plan_planned(root: Path) -> str:
    """Lists published utilisation of CLIP beside the plan's."""
    found = read_results(root, "plan_validation")["planned"]
    rows = [
        [
            row["run"],
            f"{row['gpus']} x {row['gpu']}",
            f"{row['mfu']:.1f}",
            ranged(row["planned"], "{:.1f}"),
            f"{row['planned']['middle'] / row['mfu']:.1f}",
        ]
        for row in found
    ]
    inside = sum(row["planned"]["low"] <= row["mfu"] <= row["planned"]["high"] for row in found)
    table = markdown_table(["run", "GPUs", "MFU, %", "planned, %", "planned / published"], rows)
    return f"{table}\n\n{inside} of {len(found)} published numbers lie in the range of their plan."


def plan_kept(root: Path) -> str:
    """Lists what share of its rate per GPU a run keeps on more GPUs, as published and as planned."""
    found = read_results(root, "plan_validation")
    published = json.loads((root / "benchmarks" / "published_runs.json").read_text(encoding="utf-8"))
    series: dict[tuple[str, str], dict[int, float]] = {}
    for row in found["published"]["rows"]:
        name = row["run"].removesuffix(", gradients sharded")
        series.setdefault((name, row["gpu"]), {})[row["gpus"]] = row["mfu"]
    for row in published["scaling"]:
        series[row["run"], row["gpu"]] = {int(n): rate / int(n) for n, rate in row["rates"].items()}
    planned = {(row["run"], row["gpu"], row["gpus"]): row["planned"]["middle"] for row in found["planned"]}
    rows = []
    for (name, gpu), rates in series.items():
        few, many = min(rates), max(rates)
        if many < 2 * few:
            continue
        ours = [planned.get((name, gpu, gpus)) for gpus in (few, many)]
        share = f"{ours[1] / ours[0]:.0%}" if ours[0] and ours[1] else ""
        rows.append([name, gpu, f"{few:,} to {many:,}", f"{rates[many] / rates[few]:.0%}", share])
    return markdown_table(["run", "GPU", "GPUs", "kept, published", "kept, planned"], rows)


def plan_example(root: Path) -> str:
    """Lists what 64 H100 reach in two weeks."""
    found = read_results(root, "plan_example")
    rows = []
    for name, run in found["runs"].items():
        low, middle, high = (f"{steps / 214_286:.0f}" for steps in run["steps_in_budget"])
        rows.append(
            [
                name,
                f"{run['parameters']['trainable'] / 1e6:,.0f} M",
                ranged(run["samples_per_second"], "{:,.0f}"),
                ranged(run["mfu_percent"], "{:.0f}"),
                f"{run['peak_gib']['middle']:.0f} GiB",
                f"{run['fits']}, with `{run['options']}`" if run["options"] else run["fits"],
                ranged(run["hours"], "{:.1f}"),
                f"{middle} ({low} to {high})",
            ]
        )
    header = ["model", "parameters", "samples/s", "MFU, %", "memory", "fits", "hours for 214,286 steps",
              "such runs in two weeks"]  # fmt: skip
    return markdown_table(header, rows)


def plan_names(root: Path) -> str:
    """Lists the GPUs, networks, rates of failures and assumptions that plans know."""
    gpus = []
    for g in GPUS.values():
        peaks = [f"{g.flops / 1e12:,.0f}", f"{g.fp32 / 1e12:g}", f"{g.tf32 / 1e12:,g}"]
        sizes = [*peaks, f"{g.memory_gib:g}", f"{g.memory_bandwidth / 1e12:g}"]
        gpus.append([f"`{g.name}`", g.title, *sizes, f"{g.best_gemm:.0%}", f"{g.link / 1e9:.0f}",
                     f"{g.host_gib:g}"])  # fmt: skip
    networks = [[f"`{n.name}`", n.title, f"{n.node / 1e9:.1f}"] for n in NETWORKS.values()]
    rates = [
        [f"`{r.name}`", f"{r.per_thousand_node_days:.2f}", f"{r.per_run_day:g}", r.source]
        for r in RATES.values()
    ]
    ranges = [
        [f"`{name}`", f"{r.worse:g}", f"{r.middle:g}", f"{r.better:g}", r.source]
        for name, r in RANGES.items()
    ]
    return "\n\n".join(
        (
            markdown_table(
                [
                    "--gpu",
                    "",
                    "16-bit TFLOP/s",
                    "fp32",
                    "TF32",
                    "GiB",
                    "TB/s",
                    "best GEMM",
                    "busbw in a node, GB/s",
                    "host GiB per GPU",
                ],
                gpus,
            ),
            markdown_table(["--network", "between nodes of 8 GPUs", "GB/s of a node"], networks),
            markdown_table(["--failures", "per 1,000 node-days", "per run and day", "source"], rates),
            markdown_table(["assumption", "worse", "middle", "better", "source"], ranges),
        )
    )


def laws_chinchilla(root: Path) -> str:
    """Compares the fit of Chinchilla's points with Epoch's, from `benchmarks/laws_chinchilla.py`."""
    found = read_results(root, "laws_chinchilla")
    rows = [
        [
            name,
            f"{found['published'][name]:g}",
            f"{value:,.4g}",
            "{:,.4g} to {:,.4g}".format(*found["intervals"][name]),
        ]
        for name, value in found["numbers"].items()
    ]
    objectives = f"{found['objective']:.13f}, theirs {found['their_objective']:.13f}"
    advice = found["advice"]
    loss, low, high = advice["loss"]
    n, d = advice["parameters"], advice["samples"]
    said = (
        f"For Chinchilla's own {advice['budget']:.3g} FLOPs, {advice['beyond']:.0f} times those of the "
        f"largest of these runs, the fit recommends {n / 1e9:.0f} G parameters and {d / 1e12:.2f} T tokens, "
        f"{d / n:.0f} for each parameter, with a loss of {loss:.3f} ({low:.3f} to {high:.3f}). Chinchilla "
        "has 70 G and 1.4 T."
    )
    counts = f"Chinchilla's {found['points']} points, {found['fitted']} of them fitted"
    return (
        f"{counts} as in Besiroglu et al. (2024). Objective {objectives}.\n\n"
        f"{markdown_table(['number', 'published', 'here', 'here, 95 %'], rows)}\n\n"
        f"{said}\n\n"
        "The points are not in this repository, as theirs has no licence. `benchmarks/laws_chinchilla.py` "
        "fits them where you have the file; the tests recover the published numbers from points that follow "
        "them."
    )


BLOCKS = {
    "plan_work": plan_work,
    "plan_memory": plan_memory,
    "plan_collectives": plan_collectives,
    "plan_published": plan_published,
    "plan_planned": plan_planned,
    "plan_kept": plan_kept,
    "plan_example": plan_example,
    "plan_names": plan_names,
    "laws_chinchilla": laws_chinchilla,
}
