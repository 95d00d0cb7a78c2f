"""Fits Chinchilla's points, as Epoch AI read them off the paper's figure, and compares with their refit.

    python benchmarks/laws_chinchilla.py svg_extracted_data.csv && make docs

The file is data/svg_extracted_data.csv of github.com/epoch-research/analyzing-chinchilla. That repository has
no licence, so the points are not in this one. Tokens are FLOPs / 6 N, and the five highest losses are left
out, as in Besiroglu et al. (2024). Writes benchmarks/results/laws_chinchilla.json.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from scripts import parser_of

from flava_ds.scaling import findings, laws
from flava_ds.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "laws_chinchilla.json"
PUBLISHED = {"E": 1.82, "A": 482, "alpha": 0.348, "B": 2085, "beta": 0.366}
LEFT_OUT = 5
BUDGET = 5.76e23
"""FLOPs of Chinchilla itself: 70 G parameters, 1.4 T tokens."""
OBJECTIVE = 0.0010182740389506908
"""The lowest that their notebook prints, of 4,500 starts of L-BFGS."""


def main() -> None:
    """Fits and writes."""
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bootstrap", type=int, default=200)
    options = parser.parse_args()
    rows = findings.read_csv(options.file)
    for row in rows:
        row["tokens"] = str(float(row["Training FLOP"]) / 6 / float(row["Model Size"]))
    named = dict.fromkeys(("unique", "batch"), "") | {"flops": "Training FLOP"}
    named |= {"loss": "loss", "parameters": "Model Size", "samples": "tokens"}
    runs = findings.runs_of(rows, str(options.file), named)
    runs = runs.at(runs.losses < np.sort(runs.losses)[-LEFT_OUT])
    law = findings.law(laws.of_size_and_data(runs.columns), runs, options.bootstrap)
    numbers, advice = law.fit.named(), findings.advise(law, runs, BUDGET)
    found = {
        "sha256": hashlib.sha256(options.file.read_bytes()).hexdigest(),
        "points": len(rows),
        "fitted": len(runs.names),
        "bootstrap": options.bootstrap,
        "objective": law.fit.objective,
        "their_objective": OBJECTIVE,
        "published": PUBLISHED,
        "numbers": numbers,
        "advice": {"budget": BUDGET, **vars(advice)},
        "intervals": {name: law.interval(lambda fit, name=name: fit.named()[name]) for name in numbers},
    }
    write_json(RESULTS, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
