"""How the objectives of a run pull: cosines between their gradients, the gradients' norms, and the weights
that learned balances end with.

    flava-ds train ablation/flava_no_init --name measured \\
        --logging.objective-gradient-cosines-every 20 --logging.objective-gradient-norms-every 20
    flava-ds train ablation/flava_no_init_gradnorm --name gradnorm
    python benchmarks/objective_gradients.py runs/measured runs/gradnorm && make docs

The first run is measured; of the others the weights at the end are read. Writes
benchmarks/results/objective_gradients.json, where the weights of balances that are not given stay.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from scripts import parser_of, read_results

from flava_ds import config as configuration
from flava_ds.watching.run_log import RunLog, read_log

RESULT = Path(__file__).parent / "results" / "objective_gradients.json"
COSINE, NORM, WEIGHT = "gradient_cosine/", "encoder_gradient_norm/", "weight/"


def halves(log: RunLog, name: str) -> list[float]:
    """Returns the means of a number over the first and the second half of its records."""
    _, values = log.series(name)
    middle = len(values) // 2
    return [statistics.fmean(part) for part in (values[:middle], values[middle:])]


def main() -> None:
    """Reads the runs' logs."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args().runs
    logs = [(configuration.load(run / "config.json"), read_log(run / "log.jsonl")) for run in runs]
    config, log = logs[0]
    earlier = read_results(RESULT, {"weights": {}})["weights"]
    cosines = {}
    for name in log.names(COSINE):
        _, values = log.series(COSINE + name)
        below = sum(value < 0 for value in values) / len(values)
        cosines[name] = {"halves": halves(log, COSINE + name), "below": below, "n": len(values)}
    found = {
        "steps": config.training.total_steps,
        "configured": {name: own.weight for name, own in config.objectives.items()},
        "cosines": cosines,
        "norms": {name: halves(log, NORM + name) for name in log.names(NORM)},
        "weights": earlier
        | {
            own.balance.type: {name: of_run.series(WEIGHT + name)[1][-1] for name in of_run.names(WEIGHT)}
            for own, of_run in logs
            if own.balance is not None
        },
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
