"""What launchers refuse before they start anything, and their --help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dry_runs import FOLDER, ROOT, STARTED, hostfile, printed, refused


@pytest.mark.parametrize("script", STARTED)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: no recipe; usage:"),
        (["flava_bose"], "did you mean 'flava_base'?"),
        (["flava_base", "--optimizer.lrr=1"], "did you mean '--optimizer.lr'?"),
        (["flava_base_full"], "several runs in a row"),
        (["flava_base", "--ranks", "8"], "error: --ranks is not for "),
    ],
)
def test_slips_stop_before_the_launch(tmp_path, script, words, message):
    assert message in refused(script, *words, HOSTFILE=str(hostfile(tmp_path)))


@pytest.mark.parametrize("script", STARTED)
def test_help_is_the_head_of_the_script(script):
    shown = printed(script, "--help")
    lines = (FOLDER / script).read_text().splitlines()[1:]
    head = [line for line in lines[: lines.index("set -euo pipefail")] if not line.startswith("#SBATCH")]
    assert shown.splitlines() == [line.removeprefix("# ") for line in head]
    assert f"{script} [--dry-run] RECIPE" in shown or script == "slurm.sbatch"


def test_help_after_a_recipe_lists_its_fields():
    assert "--data.sources.pair.shards" in printed("torchrun.sh", "flava_debug", "--help")


def test_a_dry_run_may_be_asked_for_after_the_recipe():
    done = subprocess.run(
        ["bash", str(FOLDER / "torchrun.sh"), "flava_base", "--dry-run", "--seed", "3"],
        capture_output=True, text=True, timeout=60, env=os.environ | {"RANKS": "4"},
    )  # fmt: skip
    assert done.stdout.endswith("--module flava_ds.train flava_base --seed 3\n"), done.stderr


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("torchrun.sh", {"NODES": "x", "HEAD": "a"}, "NODES='x': use a number of machines"),
        ("torchrun.sh", {"NODES": "4:2", "HEAD": "a"}, "NODES='4:2': use a number of machines"),
        ("torchrun.sh", {"RANKS": "0"}, "RANKS='0': use a whole number of at least 1"),
        ("torchrun.sh", {"RANKS": "08"}, "RANKS='08': use a whole number of at least 1"),
        ("torchrun.sh", {"RESTARTS": "-1"}, "RESTARTS='-1': use a whole number of at least 0"),
        (
            "deepspeed.sh",
            {"PORT": "70000"},
            "PORT='70000': use a whole number of at least 0 and at most 65535",
        ),
        ("kubernetes.sh", {"GPUS": "eight"}, "GPUS='eight': use a whole number of at least 1"),
        ("kubernetes.sh", {"NODES": "2:4"}, "NODES='2:4': use a whole number of at least 1"),
        ("slurm.sbatch", {"GRACE": "5m"}, "GRACE='5m': use a whole number of at least 0"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(tmp_path, script, variables, message):
    told = refused(script, "flava_base", **{"HOSTFILE": str(hostfile(tmp_path)), **variables})
    assert told.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("script", "variables", "ranks"),
    [
        ("torchrun.sh", {"RANKS": "3"}, 3),
        ("torchrun.sh", {"RANKS": "4", "NODES": "2:3", "HEAD": "a"}, 12),
        ("deepspeed.sh", {"lines": "node1 slots=8  # rack 2\n\n# ours\nnode2 slots=4 max_slots=4"}, 12),
        ("kubernetes.sh", {"NODES": "3", "GPUS": "2"}, 6),
        ("slurm.sbatch", {"SLURM_JOB_NUM_NODES": "3", "SLURM_GPUS_ON_NODE": "8"}, 24),
    ],
)
def test_batches_that_the_ranks_do_not_divide_are_refused(tmp_path, script, variables, ranks):
    hosts = hostfile(tmp_path, *variables.pop("lines", "node1 slots=8").split("\n"))
    told = refused(script, "flava_debug", **variables, HOSTFILE=str(hosts))
    assert f"global_batch_size 16 is not divisible by {ranks} ranks" in told


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["node1 slots=8", "node2"], ", line 2: 'node2' is no machine; write e.g. 'node1 slots=8'"),
        (["node1 slots=0"], ", line 1: 'node1 slots=0' is no machine"),
        (["node1 slots=8", "node1 slots=8"], ", line 2: 'node1' occurs twice; add up its slots"),
        (["# none"], " names no machine"),
    ],
)
def test_hostfiles_that_deepspeed_cannot_read_are_refused(tmp_path, lines, message):
    hosts = hostfile(tmp_path, *lines)
    told = refused("deepspeed.sh", "flava_base", HOSTFILE=str(hosts))
    assert told.startswith(f"error: HOSTFILE '{hosts}'{message}")


@pytest.mark.parametrize("script", ["torchrun.sh", "deepspeed.sh", "slurm.sbatch"])
def test_missing_inputs_stop_before_the_launch(tmp_path, script):
    """torchrun would try again. kubernetes.sh does not look: the shards are elsewhere."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"PATH": path, "HOSTFILE": str(hostfile(tmp_path)), "FLAVA_DS_CLONE": str(ROOT)}
    command = ["bash", str(FOLDER / script), "flava_base", "--data.sources.pmd.shards", "gone"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=os.environ | variables
    )
    assert done.returncode == 2 and done.stderr.startswith("error: source 'pmd': no folder or .tar at 'gone'")
    assert done.stderr.count("\n") == 1 and done.stdout == ""
