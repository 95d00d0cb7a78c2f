"""docs/forecast.md: the parts of a step on GPUs as forecast, from benchmarks/results/forecast.json, beside
what a GPU measured.
"""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, ranged, read_results

CARDS = {"h100": "H100", "h200": "H200", "a100": "A100"}
"""Name of the planner -> what the name of a card that was measured has in it."""
WAITING = "waiting for the host"


def forecast(root: Path) -> str:
    """One table per card: ms of a step of pairs by part, forecast for one GPU, and measured."""
    results = read_results(root, "forecast")
    blocks = []
    for card, title in CARDS.items():
        own = [plan for plan in results["forecasts"] if (plan["card"], plan["gpus"]) == (card, 1)]
        plans = {plan["pairs"]: plan for plan in own}
        runs = [
            run | {"mfu_percent": 100 * run["flops_per_second"] / plans[run["pairs"]]["peak_flops"]}
            for run in results["measured"]
            if title in run["card"]
        ]
        header = ["ms of a step, forecast", *(f"{pairs} pairs" for pairs in plans)]
        header += [f"measured, {run['pairs']} pairs" for run in runs]
        rows = [
            [
                row,
                *(ranged(plan["ms"][row]) for plan in plans.values()),
                *(judged(run["ms"][row], plans[run["pairs"]]["ms"][row]) for run in runs),
            ]
            for row in next(iter(plans.values()))["ms"]
            if any(plan["ms"][row]["high"] >= 0.005 for plan in plans.values()) or row == WAITING
        ]
        for label, key in (("**step**", "step_ms"), ("MFU, %", "mfu_percent")):
            cells = [judged(run[key], plans[run["pairs"]][key]) for run in runs]
            rows.append([label, *(ranged(plan[key]) for plan in plans.values()), *cells])
        hosts = [ranged(plan["host_ms"]) for plan in plans.values()]
        rows.append(["host, beside the device", *hosts, *("" for _ in runs)])
        cards = sorted({f"{run['card']} at {run['commit'][:7]}" for run in runs})
        said = f"Measured: {', '.join(cards)}." if cards else "Measured: nothing yet."
        blocks.append(f"One {title}. {said}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(blocks)


def eight(root: Path) -> str:
    """What changes on the eight GPUs of one machine."""
    rows = []
    for plan in read_results(root, "forecast")["forecasts"]:
        if plan["gpus"] == 1:
            continue
        parts = ("optimizer", "communication, exposed", "stragglers")
        cells = [ranged(plan["ms"][part]) for part in parts]
        rows.append(
            [CARDS[plan["card"]], plan["pairs"], *cells, ranged(plan["step_ms"]), ranged(plan["mfu_percent"])]
        )
    header = ["8 x", "pairs of each", "optimizer", "communication, exposed", "stragglers", "step", "MFU, %"]
    return markdown_table(header, rows)


def judged(value: float, estimate: dict[str, float]) -> str:
    """Writes what was measured, in bold if it lies outside of the forecast's range."""
    inside = round(estimate["low"], 1) <= round(value, 1) <= round(estimate["high"], 1)
    return f"{value:.1f}" if inside else f"**{value:.1f}**"


BLOCKS = {"forecast": forecast, "forecast_eight": eight}
