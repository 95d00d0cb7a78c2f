"""Draws the curves of stages that were trained alone, for docs/stages.md:

    for name in demo_simclr demo_dino demo_mlm; do flava-ds train $name --ranks 1; done
    python benchmarks/stage_curves.py runs/demo_simclr runs/demo_dino runs/demo_mlm

Needs the extra `demo`, for matplotlib.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from matplotlib.figure import Figure
from scripts import parser_of

from flava_ds import config as configuration
from flava_ds.report.charts import smooth

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "curves" / "stages_trained_alone.svg"
WIDTH, HEIGHT = 3.2, 2.2
"""Of one panel, in inches."""


def main() -> None:
    """Draws one panel for each run: its loss over steps, and what guessing would have."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args().runs
    figure = Figure(figsize=(WIDTH * len(runs), HEIGHT), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        config = configuration.load(run / "config.json")
        [(name, objective)] = config.objectives.items()
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        drawn = [(line["step"], line[f"loss/{name}"]) for line in lines if f"loss/{name}" in line]
        steps, losses = zip(*drawn, strict=True)
        axes.plot(steps, losses, linewidth=0.8, alpha=0.4, color="C0")
        axes.plot(steps, smooth(losses), linewidth=1.6, color="C0")
        axes.axhline(math.log(guesses(config)), color="0.4", linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set(title=f"{run.name}: {objective.title}", xlabel="update", ylabel="loss, nats")
        axes.title.set_fontsize(9)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)


def guesses(config: configuration.Config) -> int:
    """Returns among how many equally likely answers a run's only objective chooses."""
    [(name, objective)] = config.objectives.items()
    if name == "simclr":
        return config.global_batch_size(next(iter(config.drawn_sources)))
    return objective.num_prototypes if name == "dino" else objective.classes(config)


if __name__ == "__main__":
    main()
