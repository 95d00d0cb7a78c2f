"""`flava-ds evaluate --suite` on a run of a tiny model and every published layout in miniature: one page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation.color_world import write_own
from evaluation.miniature_root import EUROSAT, write_root
from sample_runs import write_run

from flava_ds.cli import main
from flava_ds.evaluation.paper_table import ROWS
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.suite import split_otherwise, with_splits
from flava_ds.evaluation.tasks import eurosat
from flava_ds.report.suite_page import title_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("h5py")
    root = write_root(tmp_path_factory.mktemp("published"))
    (root / "own_text").mkdir()  # whose files are missing
    return root


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for name, count in EUROSAT.items():
        monkeypatch.setattr(eurosat, name, count)


def suite(capsys, *words):
    status = main(["evaluate", *map(str, words)])
    told = capsys.readouterr()
    return status, told.out.split(), told.err


def test_all_data_that_is_there_makes_one_page(run, root, tmp_path, capsys):
    pytest.importorskip("jinja2")
    words = [run, "--suite", "all", "--data", root, "--out", tmp_path / "out"]
    status, files, told = suite(capsys, *words)
    assert status == 0 and [file.rsplit("/", 1)[1] for file in files] == [
        "suite.json",
        "suite.md",
        "suite.html",
    ]
    report = json.loads((tmp_path / "out/suite.json").read_text())
    scored = {task for task, result in report["tasks"].items() if "scores" in result}
    assert len({row.task for row in ROWS}) == 35 and {row.task for row in ROWS} <= scored
    assert all(row.number in report["tasks"][row.task]["scores"] for row in ROWS)
    assert {"imagenet_zero_shot", "winoground_matching"} <= scored
    failed = {task for task, result in report["tasks"].items() if "failed" in result}
    assert failed == {"own_text_probe", "own_text_tuned"} and "own_text: no own_text in" in told
    assert report["tasks"]["own_text_probe"]["failed"].startswith("no own_text in")
    for result in report["tasks"].values():
        for score in result.get("scores", {}).values():
            low, high = score["interval"] or (0, 1)
            assert -1 <= low <= high <= 1 and score["n"] > 0
    page = (tmp_path / "out/suite.md").read_text()
    assert "| Food101 | published | " in page and "88.51" not in page and "| SUN397 | vissl | " in page
    assert page.count("**average**") == 3 and "Not found: " not in page
    assert all(f"| {title_of(row)} | " in page for row in ROWS)
    assert "- weights: " in page and "`own_text_probe`: no own_text" in page
    html = (tmp_path / "out/suite.html").read_text()
    assert html.count("<tr>") > 40 and "Country211" in html and "<script" not in html

    # A second run reads and encodes nothing that has not changed.
    (root / "dtd/dtd/labels/test1.txt").write_text(
        "blue/blue_test0.jpg\ngreen/green_test1.jpg\nred/red_test2.jpg\n"
    )
    status, _, again = suite(capsys, *words)
    kept = set(re.findall(r"^(\w+): kept from an earlier run", again, re.M))
    assert status == 0 and scored - kept == {"dtd_probe"} and kept < scored
    pictures = sorted((root / "dtd/dtd/images").rglob("*.jpg"))
    pictures[0].write_bytes(pictures[-1].read_bytes())  # another picture under its name
    assert "dtd_probe: kept from an earlier run" not in suite(capsys, *words)[2]
    assert "dtd_probe: logistic" in again
    other = json.loads((tmp_path / "out/suite.json").read_text())["tasks"]
    assert other["food101_probe"] == report["tasks"]["food101_probe"]
    assert other["dtd_probe"]["scores"]["accuracy"]["n"] == 3

    # What a damaged entry says is not kept.
    other["dtd_probe"], other["food101_probe"] = 5, {"scores": {}, "splits": "published"}
    whole = json.loads((tmp_path / "out/suite.json").read_text()) | {"tasks": other}
    (tmp_path / "out/suite.json").write_text(json.dumps(whole))
    words[2] = "vision"
    for file in (root / "pcam").iterdir():  # nor what is no longer there
        file.unlink()
    status, _, again = suite(capsys, *words)
    assert status == 0 and {"dtd_probe", "food101_probe"}.isdisjoint(
        re.findall(r"^(\w+): kept from an earlier run", again, re.M)
    )
    lost = json.loads((tmp_path / "out/suite.json").read_text())["tasks"]["pcam_probe"]["failed"]
    assert lost.startswith("no pcam in") and "CC0-1.0" in lost and "pcam: no pcam in" in again
    page = (tmp_path / "out/suite.md").read_text()
    assert "**average of these 21 of 22**" in page and "Not found: PCAM." in page

    # Other weights and settings are said, and nothing is kept.
    words[2] = "pairs"
    for more, differs in ((["--limit", 4], "limit (None, here 4)"), (["--precision", "fp32"], "weights (")):
        status, _, told = suite(capsys, *words, *more)
        assert status == 0 and f"suite.json: of other {differs}" in told and "kept from" not in told
    assert "features are computed anew" in told


def test_splits_are_chosen_where_they_are_offered(run, root, tmp_path, capsys):
    words = ["--task", "sun397_probe,food101_probe", "--data", root, "--splits", "clip"]
    assert main(["evaluate", str(run), *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sun397_probe"]["splits"] == "clip" and found["food101_probe"]["splits"] == "published"
    assert found["sun397_probe"]["scores"]["accuracy"]["n"] == 30


EACH_METHOD = (
    "food101_probe,imagenet_neighbours,imagenet_zero_shot,coco_retrieval,flickr30k_retrieval_matching,"
    "winoground_matching,winoground_contrastive,sst2_probe,glue_mrpc,hateful_memes,vqav2,snli_ve"
)


@pytest.mark.slow
def test_a_device_as_strict_as_a_gpu_has_the_scores_of_the_cpu(run, root, capsys):
    """tests/pretend_gpu.py: no tensor of the CPU in its operations."""
    words = ["evaluate", str(run), "--task", EACH_METHOD, "--data", str(root)]
    assert main(words) == 0
    expected = json.loads(capsys.readouterr().out)
    command = [sys.executable, Path(__file__).parents[1] / "training/pretend_gpu_runs.py", *words]
    done = subprocess.run(
        [*command, "--device", "pretend:0"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(EACH_METHOD.split(",")) == expected.keys() == found.keys()
    for task, result in expected.items():
        assert found[task]["device"] == "pretend:0" and result["device"] == "cpu"
        for name, score in result["scores"].items():
            assert found[task]["scores"][name]["value"] == pytest.approx(score["value"], abs=1e-4), task


@pytest.mark.parametrize(
    "words, said",
    [
        (["--suite", "vision"], "--suite needs --data ROOT"),
        (["--suite", "vision", "--task", "own_probe", "--data", "."], "--task and --suite are two things"),
        (["--suite", "vision", "--data", "gone"], "--data gone: no such folder"),
        (["--suite", "vision", "--data", ".", "--split", "val"], "--split is for --task"),
        (
            ["--task", "dtd_probe", "--data", ".", "--splits", "clip"],
            "--splits clip: no data set of these tasks",
        ),
        (["--task", "dtd_probe", "--data", ".", "--out", "x"], "--out is for --suite"),
        (["--features", "x"], "--features requires --task"),
    ],
)
def test_mistakes_are_one_line(run, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, told = suite(capsys, run, *words)
    assert status == 2 and said in told and len(told.strip().splitlines()) == 1


def test_a_folder_without_data_is_said(run, tmp_path, capsys):
    status, _, told = suite(capsys, run, "--suite", "pairs", "--data", tmp_path, "--out", tmp_path / "out")
    assert status == 2 and "no data of suite pairs could be used" in told
    reasons = json.loads((tmp_path / "out/suite.json").read_text())["tasks"]
    assert all("licence: " in reasons[task]["skipped"] for task in ("coco_retrieval", "winoground_matching"))


def test_a_suite_has_a_folder_for_each_step_and_keeps_weights_that_an_earlier_run_did_not(
    run, tmp_path, capsys
):
    write_own(tmp_path / "own", {"train": 2, "test": 2})
    words, place = [run, "--suite", "pairs", "--data", tmp_path], run / "suites" / "pairs" / "step_00000012"
    status, files, _ = suite(capsys, *words)
    assert status == 0 and files[0] == str(place / "suite.json")
    first = json.loads((place / "suite.json").read_text())["tasks"]["own_tuned"]["scores"]
    weights = run / "fine_tuning" / "step_00000012" / "own_tuned.best.safetensors"
    _, _, told = suite(capsys, *words)
    assert "own_tuned: kept from an earlier run" in told and not weights.exists()
    _, _, told = suite(capsys, *words, "--keep-weights")
    assert f"own_tuned: the weights after update 10 are {weights}" in told and weights.is_file()
    assert json.loads((place / "suite.json").read_text())["tasks"]["own_tuned"]["scores"] == first
    _, files, _ = suite(capsys, *words, "--limit", 5)
    assert files[0] == str(run / "suites" / "pairs_limit_5" / "step_00000012" / "suite.json")


def test_sets_that_are_not_split_as_asked_are_named():
    chosen = with_splits([tasks()[name] for name in ("sun397_probe", "dtd_probe", "glue_rte")], "clip")
    assert split_otherwise(chosen, "clip") == ["dtd"] and split_otherwise(chosen, None) == []
