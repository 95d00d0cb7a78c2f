"""The README's numbers come from committed results and nowhere else."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "fill_readme.py"

README = "before\n<!-- generated: demo -->\nold\n<!-- end of generated -->\nbetween\n<!-- generated: kernels -->\n<!-- end of generated -->\nafter\n"
SUMMARY = {
    "recipe": "demo",
    "precision": "bf16",
    "steps": 321,
    "seconds": 594.0,
    "phases": [{"name": "train", "seconds": 432.1}],
    "gates": [{"what": "retrieval", "value": "0.31", "wanted": "> 0.2", "passed": True}, {"what": "time", "value": "11", "wanted": "< 10", "passed": False}],
    "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0", "deepspeed": "0.19.8"},
}


def fill(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the script on a README and results of its own."""
    command = [sys.executable, str(SCRIPT), "--readme", str(tmp_path / "README.md"), "--results", str(tmp_path), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_blocks_are_filled_and_the_rest_stays(tmp_path):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "demo.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "kernels.csv").write_text("op,ms\nattention,1.5\n")
    assert fill(tmp_path, "--check").returncode == 1
    assert fill(tmp_path).returncode == 0
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n") and "\nbetween\n" in text
    assert "| retrieval | 0.31 | > 0.2 | yes |" in text and "| time | 11 | < 10 | **no** |" in text
    assert "321 steps of demo in bf16, 9.9 minutes in all (train 432 s); 2 cores of a processor" in text
    assert "| op | ms |\n| --- | --- |\n| attention | 1.5 |" in text
    assert fill(tmp_path, "--check").returncode == 0, "filling twice must change nothing"


def test_absent_results_are_said(tmp_path):
    (tmp_path / "README.md").write_text(README)
    done = fill(tmp_path)
    assert "no results for block demo (demo.json)" in done.stderr
    assert (tmp_path / "README.md").read_text().count("Not measured yet.") == 2


def test_unknown_block_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("<!-- generated: weather -->\n<!-- end of generated -->")
    done = fill(tmp_path)
    assert done.returncode == 1 and "generated block 'weather'" in done.stderr


def test_committed_readme_agrees_with_committed_results():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, "run `make docs`"
