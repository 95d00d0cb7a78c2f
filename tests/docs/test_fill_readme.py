"""The README's numbers come from committed results and nowhere else."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "fill_readme.py"

NAMES = ("demo_10min", "demo_60min", "step")
README = "before\n" + "between\n".join(f"<!-- generated: {name} -->\nold\n<!-- end of generated -->\n" for name in NAMES) + "after\n"
SUMMARY = {
    "recipe": "demo",
    "ranks": 2,
    "metrics": {"masked/mim/accuracy": 0.1234, "masked/mim/accuracy/chance": 0.005, "not shown": 1.0},
    "precision": "bf16",
    "steps": 321,
    "seconds": 594.0,
    "phases": [{"name": "train", "seconds": 432.1}],
    "gates": [{"what": "retrieval", "value": "0.31", "wanted": "> 0.2", "passed": True}, {"what": "time", "value": "11", "wanted": "< 10", "passed": False}],
    "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0", "deepspeed": "0.19.8"},
}
STEP = {
    "machine": "x86_64",
    "threads": 2,
    "rounds": 3,
    "batch": 32,
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "rows": [
        {
            "lengths": "demo",
            "implementation": "huggingface",
            "seconds": {"pair": 0.709, "image": 0.176, "text": 0.137},
            "time_over_flava_ds": 1.79,
            "time_over_flava_ds_range": [1.774, 1.807],
            "peak_mib": 1415.8,
        }
    ],
}


def fill(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the script on a README and results of its own."""
    command = [sys.executable, str(SCRIPT), "--readme", str(tmp_path / "README.md"), "--results", str(tmp_path), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_blocks_are_filled_and_the_rest_stays(tmp_path):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "demo_10min.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "step_vs_huggingface.json").write_text(json.dumps(STEP))
    assert fill(tmp_path, "--check").returncode == 1
    assert fill(tmp_path).returncode == 0
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert text.count("\nbetween\n") == 2 and text.count("Not measured yet.") == 1
    assert "| retrieval | 0.31 | > 0.2 | yes |" in text and "| time | 11 | < 10 | **no** |" in text
    assert "| masked patches, image alone (MIM) | 12.3 % | 0.50 % |  |" in text and "not shown" not in text
    assert "| the demo's | Hugging Face, padded to 77 | 0.71 | 0.18 | 0.14 | 1.79 (1.77 to 1.81) | 1416 |" in text
    assert "Batches of 32, 2 threads of x86_64, 3 rounds, torch 2.13.0, transformers 5.24.0" in text
    assert "321 steps of demo in bf16 on 2 ranks, 9.9 minutes in all (train 432 s); 2 cores of a processor" in text
    assert fill(tmp_path, "--check").returncode == 0, "filling twice must change nothing"


def test_absent_results_are_said(tmp_path):
    (tmp_path / "README.md").write_text(README)
    done = fill(tmp_path)
    assert "no results for block demo_10min (demo_10min.json)" in done.stderr and "no results for block demo_60min" in done.stderr
    assert (tmp_path / "README.md").read_text().count("Not measured yet.") == 3


def test_unknown_block_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("<!-- generated: weather -->\n<!-- end of generated -->")
    done = fill(tmp_path)
    assert done.returncode == 1 and "generated block 'weather'" in done.stderr


def test_committed_readme_agrees_with_committed_results():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, "run `make docs`"
