"""Numbers of README.md and docs/ come from committed results and nowhere else."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flava_ds.demo.evaluation import summary

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "fill.py"

NAMES = ("demo_ten_minutes", "demo_hour", "step")
README = (
    "before\n"
    + "between\n".join(f"<!-- generated: {name} -->\nold\n<!-- end of generated -->\n" for name in NAMES)
    + "after\n"
)
SUMMARY = {
    "recipe": "demo",
    "ranks": 2,
    "metrics": {"masked/mim/accuracy": 0.1234, "masked/mim/accuracy/chance": 0.005, "not shown": 1.0},
    "precision": "bf16",
    "steps": 321,
    "seconds": 594.0,
    "phases": [{"name": "train", "seconds": 432.1}],
    "gates": [
        {"what": "retrieval", "value": "0.31", "wanted": "> 0.2", "passed": True},
        {"what": "time", "value": "11", "wanted": "< 10", "passed": False},
    ],
    "machine": {"cores": 2, "processor": "a processor", "torch": "2.13.0", "deepspeed": "0.19.8"},
}
STEP = {
    "rows": [
        {
            "machine": "x86_64",
            "threads": 2,
            "rounds": 3,
            "batch": 32,
            "torch": "2.13.0",
            "transformers": "5.24.0",
            "model": "flava",
            "lengths": "demo",
            "implementation": "huggingface",
            "seconds": {"pair": 0.709, "image": 0.176, "text": 0.137},
            "time_over_flava_ds": 1.79,
            "time_over_flava_ds_range": [1.774, 1.807],
            "peak_mib": 1415.8,
        }
    ],
}

ORDER = {
    "order": "full shuffle",
    "same_shard": 1.0004,
    "near": 2.345,
    "again": 104.2,
    "shards": 120.0,
    "rank_correlation": -0.0012,
    "lag_correlation": 0.5,
    "working_set": 1.0,
    "read_amplification_1": 1.07,
}


def fill(root: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the script on the pages and results of a repository, in this process: a new one would import torch
    and all blocks, for two seconds.
    """
    words = [str(SCRIPT), "--root", str(root), *flags]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stderr(said):
        patched.setattr(sys, "argv", words)
        patched.syspath_prepend(str(SCRIPT.parent))
        try:
            status = importlib.import_module("fill").main()
        except SystemExit as end:
            status = 1
            print(end.code, file=sys.stderr)
    return subprocess.CompletedProcess(words, status, stderr=said.getvalue())


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository with a README and no results."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def write_results(root: Path, **results: dict) -> None:
    """Writes results by name."""
    for name, result in results.items():
        (root / "benchmarks" / "results" / f"{name}.json").write_text(json.dumps(result))


def test_blocks_are_filled_and_the_rest_stays(root):
    write_results(root, demo_ten_minutes=SUMMARY, step_vs_huggingface=STEP)
    assert fill(root, "--check").returncode == 1
    assert fill(root).returncode == 0
    text = (root / "README.md").read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert text.count("\nbetween\n") == 2 and text.count("Not measured yet.") == 1
    assert "| retrieval | 0.31 | > 0.2 | yes |" in text and "| time | 11 | < 10 | **no** |" in text
    assert "| masked patches, image alone (MIM) | 12.3 % | 0.50 % |  |" in text and "not shown" not in text
    assert (
        "| the demo's | Hugging Face, padded to 77 | 0.71 | 0.18 | 0.14 | 1.79 (1.77 to 1.81) | 1416 |"
        in text
    )
    assert "Batches of 32, 2 threads of x86_64, 3 rounds, torch 2.13.0, transformers 5.24.0" in text
    assert (
        "321 steps of demo in bf16 on 2 ranks, 9.9 minutes in all (train 432 s); 2 cores of a processor"
        in text
    )
    assert fill(root, "--check").returncode == 0, "filling twice must change nothing"


def test_demos_are_compared_in_short(root, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    labels = importlib.import_module("blocks.readme").IN_SHORT
    names = {label: name for name, label in summary.ROWS}
    metrics = {names[label]: 0.25 for label in labels} | {names[labels[0]] + "/chance": 0.01}
    write_results(
        root,
        demo_ten_minutes=SUMMARY | {"metrics": metrics},
        demo_hour=SUMMARY | {"metrics": metrics | {names[labels[0]]: 0.5}},
    )
    (root / "README.md").write_text("<!-- generated: demo -->\n<!-- end of generated -->\n")
    assert fill(root).returncode == 0
    text = (root / "README.md").read_text()
    assert (
        f"| {labels[0]} | 1.0 % |  | 25.0 % | 50.0 % |" in text
        and "Quality gates passed: 1 of 2 in ten minutes, 1 of 2 in an hour." in text
    )


def test_absent_results_are_said(root):
    done = fill(root)
    assert (
        "no results for block demo_ten_minutes of README.md (demo_ten_minutes.json)" in done.stderr
        and "no results for block demo_hour" in done.stderr
    )
    assert (root / "README.md").read_text().count("Not measured yet.") == 3


def test_unknown_block_is_refused(root):
    (root / "docs" / "page.md").write_text("<!-- generated: weather -->\n<!-- end of generated -->")
    done = fill(root)
    assert done.returncode == 1 and "error: page.md has a generated block 'weather'" in done.stderr


def test_check_names_the_page_that_is_out_of_date(root):
    write_results(root, data_order_mixing={"orders": [ORDER]})
    page = root / "docs" / "order.md"
    page.write_text("<!-- generated: data_order -->\n<!-- end of generated -->\n")
    assert fill(root).returncode == 0
    assert "| full shuffle | 1 | 2.35 | 104 | 120 | -0.001 | 1.07 |\n" in page.read_text()
    write_results(root, data_order_mixing={"orders": [ORDER | {"near": 2.4}]})
    done = fill(root, "--check")
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1] == "error: docs/order.md differs from the results; run `make docs`"
    )


def test_communication_in_words_and_against_theory(root):
    gathered, reduced = ["weights", "all_gather", 4096], ["gradients", "all_reduce", 100]
    row = {
        "setting": "zero1",
        "kind": "pair",
        "changed": False,
        "calls": 7,
        "measured": [gathered, reduced],
        "theory": [gathered, reduced],
        "paper": 2148,
    }
    write_results(
        root,
        communication={
            "ranks": 2,
            "recipe": "tiny",
            "weights": 2048,
            "rows": [row, row | {"theory": [["weights", "all_gather", 4000], reduced]}],
        },
    )
    page = root / "docs" / "page.md"
    page.write_text("<!-- generated: communication -->\n<!-- end of generated -->\n")
    assert fill(root).returncode == 0
    text = page.read_text()
    assert (
        "| zero1 | pair | all_reduce 100 B | all_gather 4.0 KiB | 7 | 2.1 KiB | equal | 1.00 of 2.1 KiB |"
        in text
    )
    assert "| +2.286% |" in text, "2148 bytes leave a rank, 2100 in theory"


def test_checkpoint_cost_in_words(root):
    ways = {
        "flava_ds in the background": {
            "stands_s": 0.5,
            "on_disk_s": 20.04,
            "bytes": 2**30,
            "step_meanwhile_s": 3.0,
        }
    }
    ways["torch.save"] = {"stands_s": 8.125, "on_disk_s": 9.0, "bytes": 2**29}
    about = {
        "machine": "a CPU",
        "cores": 2,
        "load": 1.6,
        "torch": "2.13.0",
        "rounds": 4,
        "parameters": 110_714_743,
        "undisturbed_step_s": 2.0,
    }
    write_results(root, checkpoint_cost=about | {"ways": ways})
    page = root / "docs" / "page.md"
    page.write_text("<!-- generated: checkpoint_cost -->\n<!-- end of generated -->\n")
    assert fill(root).returncode == 0
    text = page.read_text()
    assert "111 million parameters" in text and "load 2" in text and "a step takes 1.50 times as long" in text
    assert "a save costs 7.0 s of training" in text, (
        "20.04 s, in which 19.54 / 3 steps were made that take 2 s each otherwise"
    )
    assert (
        "| flava_ds in the background | 0.50 s | 20.0 s | 1.00 GiB |\n| torch.save | 8.12 s | 9.0 s | "
        "0.50 GiB |"
    ) in text


def test_committed_pages_agree_with_committed_results():
    done = fill(ROOT, "--check")
    assert done.returncode == 0, done.stderr


def test_every_block_is_shown_once(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    script = importlib.import_module("fill")
    shown = [
        name for page in script.pages_of(ROOT) for _, name, _, _ in script.MARKS.findall(page.read_text())
    ]
    assert sorted(shown) == sorted(script.find_blocks())


def test_a_number_without_an_interval_says_so_and_none_is_bold_beside_it(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    cell = importlib.import_module("blocks.evaluation")._cell
    known, none = ({"value": 1.0, "interval": between} for between in ((0.9, 1.0), None))
    assert (cell(none, known), cell(known, none)) == ("100.0 (-)", "100.0 (90.0 to 100.0)")
    assert cell(known, {"value": 0.5, "interval": (0.4, 0.6)}) == "**100.0** (90.0 to 100.0)"
