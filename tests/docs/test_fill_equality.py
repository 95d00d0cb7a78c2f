"""The tables of docs/equality.md say what the results say."""

import json

from test_fill import fill

NAMES = ("equality_conditions", "equality", "equality_fp32", "two_pass_memory", "two_pass_time")
ROW = {
    "ranks": 3,
    "stage": "zero2_offload",
    "accumulation": 4,
    "checkpointing": True,
    "idle": "zeros",
    "arithmetic": "fp64",
}
EQUALITY = {
    "steps": 20,
    "batch": 24,
    "observed": 8,
    "conditions": {"alike": "all alike"},
    "torch": "2.13.0",
    "deepspeed": "0.19.8",
    "rows": [
        {**ROW, "losses": 1e-9, "norms": 2e-8, "gradients": 3e-7, "parameters": 4.56e-7},
        {**ROW, "stage": "zero1", "losses": 2e-9, "norms": 1e-8, "gradients": 1e-7, "parameters": 1e-7},
        {**ROW, "arithmetic": "fp32", "losses": 1e-7, "norms": 2e-7, "gradients": 6e-6, "parameters": 0.04},
    ],
}
TWO_PASS = {
    "machine": "a processor",
    "torch": "2.13.0",
    "rounds": 5,
    "micro_batches": 4,
    "batch": 32,
    "memory": [{"way": "two passes", "micro_batches": 16, "peak_mib": 512.34, "features_mib": 0.75}],
    "time": [
        {
            "objectives": "all six",
            "seconds": [2.5, 2.125],
            "ratio": 1.18,
            "range": [1.1, 1.234],
            "floor": 1.129,
        }
    ],
}


def test_rows_and_the_largest_difference(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    page = tmp_path / "docs" / "equality.md"
    page.write_text("".join(f"<!-- generated: {name} -->\n<!-- end of generated -->\n" for name in NAMES))
    for name, results in (("equality", EQUALITY), ("two_pass", TWO_PASS)):
        (tmp_path / "benchmarks" / "results" / f"{name}.json").write_text(json.dumps(results))
    assert fill(tmp_path).returncode == 0
    text = page.read_text()
    assert "| alike | all alike |" in text
    assert (
        "| 3 | zero2, optimizer offloaded | 4 | on | zeros | 1.0e-09 | 2.0e-08 | 3.0e-07 | 4.6e-07 |" in text
    )
    assert "| **largest** |  |  |  |  | **2.0e-09** | **2.0e-08** | **3.0e-07** | **4.6e-07** |" in text
    assert "| 3 | zero2_offload | 1.0e-07 | 2.0e-07 | 6.0e-06 | 4.0e-02 |" in text
    assert "| two passes | 16 | 512 | 512.3 | 0.8 |" in text
    assert (
        "| all six | 2.12 | 2.50 | 1.18 (1.10 to 1.23) | 1.13 |" in text
        and "4 micro-batches of 32 pairs, 5 rounds" in text
    )
