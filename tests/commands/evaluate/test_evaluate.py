"""`flava-ds evaluate` as a user runs it: tasks on a run, a checkpoint and an export; every mistake in one
line.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import shutil

import fsspec
import pytest
from evaluate_command import evaluated, write_data
from s3_server import s3_bucket
from sample_runs import write_run

from flava_ds.cli import main
from flava_ds.errors import CheckpointError, DataError
from flava_ds.evaluation import opening, results
from flava_ds.evaluation.opening import open_model
from flava_ds.evaluation.runner import FoundData
from flava_ds.evaluation.statistics import RESAMPLES, SEED
from flava_ds.report import suite_page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_several_tasks_on_a_run_are_json_a_table_and_a_file(run, root, capsys):
    names = "image_folder_zero_shot,image_folder_neighbours,own_retrieval,sst2_probe"
    found, table = evaluated(capsys, run, "--task", names, "--data", root)
    assert list(found) == names.split(",") and found["sst2_probe"]["step"] == 12
    score = found["image_folder_zero_shot"]["scores"]["top1_accuracy"]
    assert (
        0 <= score["value"] <= 1
        and score["n"] == 12
        and score["unit"] == "share"
        and score["higher_is_better"]
    )
    retrieval, opened = found["own_retrieval"], open_model(run)
    assert retrieval["precision"] == "bfloat16" and retrieval["split"] == "test"
    assert retrieval["device"] == str(next(opened.module.parameters()).device)
    assert retrieval["protocol"] == "zero-shot retrieval of captions and images"
    assert retrieval["weights"] == opened.weights == found["sst2_probe"]["weights"]
    assert retrieval["versions"]["torch"] == importlib.metadata.version("torch")
    assert retrieval["bootstrap"] == {"resamples": RESAMPLES, "seed": SEED, "level": 0.95}
    assert all(f"\n{name} " in table for name in found) and "published" in table
    assert f"own_retrieval: {retrieval['samples']} of split test in {root / 'own'}\n" in table
    assert json.loads((run / "evaluations.json").read_text()) == found


def test_the_same_weights_give_the_same_numbers_from_every_place(run, root, tmp_path, capsys):
    pytest.importorskip("transformers")
    assert main(["convert", str(run), "--to", "hf", str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    words = ["--task", "image_folder_probe,own_zero_shot,glue_sst2", "--data", root, "--precision", "fp32"]
    scores = []
    for model in (run, run / "checkpoints" / "step_00000012", tmp_path / "hf"):
        found, _ = evaluated(capsys, model, *words)
        scores.append({task: result["scores"] for task, result in found.items()})
    assert scores[0] == scores[1] == scores[2]
    assert found["own_zero_shot"]["step"] is None and not (tmp_path / "hf" / "evaluations.json").exists()
    words = ["evaluate", tmp_path / "hf", "--task", "glue_sst2", "--data", root, "--keep-weights"]
    assert main([*map(str, words)]) == 2
    assert "--keep-weights: hf is in no run's folder here; give --keep DIR" in capsys.readouterr().err


def test_a_checkpoint_in_a_storage_is_evaluated_from_there(run, root, tmp_path, capsys):
    words = ["--data", root, "--precision", "fp32"]
    local, _ = evaluated(capsys, run, "--task", "image_folder_zero_shot", *words)
    with s3_bucket() as (bucket, _):
        fsspec.filesystem("s3").put(f"{run}/checkpoints/", f"{bucket}/mine/", recursive=True)
        found, _ = evaluated(capsys, f"{bucket}/mine", "--task", "image_folder_zero_shot", *words)
        assert main(["evaluate", f"{bucket}/mine"]) == 2
        assert "s3://bucket/mine: is not on this machine, so name a task" in capsys.readouterr().err
        suite = ["evaluate", f"{bucket}/mine", "--suite", "vision", "--data", str(root)]
        assert main(suite) == 2 and "so a suite needs --out DIR" in capsys.readouterr().err
        assert main([*suite, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "suite.json").read_text())["path"] == "s3://bucket/mine"
    scores = [result["image_folder_zero_shot"]["scores"] for result in (local, found)]
    assert scores[0] == scores[1] and found["image_folder_zero_shot"]["model"] == "s3://bucket/mine"


def on_ranks(run, root, names, *more):
    """Runs the command on this rank; returns its status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    words = ["evaluate", str(run), "--task", names, "--data", str(root), "--precision", "fp32"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, *map(str, more)])
    return status, out.getvalue(), err.getvalue()


@pytest.mark.distributed
def test_ranks_that_a_launcher_started_share_the_work_and_keep_features(
    run, root, run_ranks, capsys, tmp_path
):
    names, kept = "image_folder_probe,glue_sst2", ("--features", tmp_path / "kept")
    shutil.rmtree(run / "fine_tuning", ignore_errors=True)
    (status, out, _), (other, nothing, silent) = run_ranks(on_ranks, 2, run, root, names, *kept)
    assert status == other == 0 and nothing == "" == silent
    shutil.rmtree(run / "fine_tuning")
    alone, _ = evaluated(capsys, run, "--task", names, "--data", root, "--precision", "fp32")
    for task, result in json.loads(out).items():
        for number, score in result["scores"].items():
            assert score["value"] == pytest.approx(alone[task]["scores"][number]["value"], abs=1e-6)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert len(written) == 2
    (_, again, _), _ = run_ranks(on_ranks, 2, run, root, "image_folder_probe", *kept)
    first, second = (json.loads(printed)["image_folder_probe"]["scores"] for printed in (out, again))
    assert first == second
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    failed = run_ranks(on_ranks, 2, run, root / "elsewhere", names)
    assert [status for status, _, _ in failed] == [2, 2]
    assert "no image_folder in" in failed[0][2] and failed[1][2] == ""


def test_limit_and_split(run, root, capsys):
    found, _ = evaluated(
        capsys, run, "--task", "image_folder_zero_shot", "--data", root, "--split", "train", "--limit", 5
    )
    result = found["image_folder_zero_shot"]
    assert (result["samples"], result["split"], result["limit"]) == (5, "train", 5)


def test_the_list_needs_no_model(capsys):
    assert main(["evaluate", "--list"]) == 0
    assert "coco_retrieval" in capsys.readouterr().out


def test_a_run_of_the_demo_has_its_own_evaluation_and_says_what_tasks_there_are(run, capsys):
    found, told = evaluated(capsys, run)
    assert "zero_shot/fluent-emoji-flat/top1_accuracy" in found["metrics"] and "; vision probes: " in told


def test_mistakes_are_one_line(run, root, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run, elsewhere)
    settings = json.loads((elsewhere / "config.json").read_text())
    next(iter(settings["data"]["sources"].values()))["shards"] = "/data/of/mine"
    (elsewhere / "config.json").write_text(json.dumps(settings))
    task = ["--task", "image_folder_zero_shot"]
    cases = [
        ([], "RUN is missing"),
        (
            [elsewhere],
            "did not train on the demo's data, so name a task. tasks for --task: ",
        ),
        ([run, *task], "--task needs --data ROOT"),
        ([run, "--data", root], "--data requires --task"),
        ([run, "--keep-weights"], "--keep-weights requires --task"),
        ([run, *task, "--data", root, "--keep-weights"], "image_folder_zero_shot train no weights; leave it"),
        ([run, *task, "--data", root, "--keep-weights", "--own-head"], "--own-head trains nothing, so"),
        ([run, "--task", "cifar", "--data", root], "no task 'cifar'"),
        ([run, *task, "--data", tmp_path], "no image_folder in"),
        ([run, *task, "--data", root, "--split", "dev"], "has no split 'dev'"),
        ([run, *task, "--data", root, "--limit", 0], "--limit 0: use at least 1"),
        ([tmp_path / "gone", *task, "--data", root], "gone: no such folder"),
        ([run, *task, "--data", root, "--device", "gpu"], "device gpu: cannot be used"),
    ]
    for words, expected in cases:
        assert main(["evaluate", *map(str, words)]) == 2, words
        told = capsys.readouterr()
        assert (
            told.err.startswith("error: ")
            and told.err.count("\n") == 1
            and expected in told.err
            and not told.out
        )


def broken_on_ranks(words, scenario):
    """Runs the command on this rank, of two, where something goes wrong on one of them. Returns the status
    and what it printed.
    """
    rank, read = os.environ["RANK"], FoundData.read

    def read_or_fail(found, split):
        if found.data.name == "own" and rank == "1":
            raise DataError("own cannot be read here")
        if found.data.name == "own" and scenario == "otherwise on the other":
            raise OSError(5, "Input/output error")
        return read(found, split)

    def fail(*_arguments, **_keywords):
        raise {
            "model": CheckpointError("this copy is damaged"),
            "results": OSError(28, "No space left on device", "evaluations.json"),
            "page": OSError(28, "No space left on device", "suite.html"),
        }[scenario]

    if scenario in ("data", "otherwise on the other"):
        FoundData.read = read_or_fail
    elif scenario == "model" and rank == "1":
        opening.open_model = fail
    elif scenario == "results" and rank == "0":
        results.write_results = fail
    elif scenario == "page" and rank == "0":
        suite_page.write_pages = fail
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["evaluate", *map(str, words)])
    return status, out.getvalue(), err.getvalue()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("scenario", "status", "said"),
    [
        ("model", 2, "error: this copy is damaged"),
        ("results", 2, "error: evaluations.json: No space left on device"),
        ("page", 2, "error: suite.html: No space left on device"),
        ("otherwise on the other", 1, "error: RuntimeError: rank 0: OSError: [Errno 5] Input/output error"),
    ],
)
def test_what_fails_on_one_rank_ends_both_alike(run, root, run_ranks, tmp_path, scenario, status, said):
    what = ["--task", "image_folder_zero_shot,own_zero_shot"]
    if scenario == "page":
        what = ["--suite", "pairs", "--out", tmp_path]
    words = [run, *what, "--data", root, "--precision", "fp32", "--limit", 4]
    (first, _, told), (second, _, silent) = run_ranks(broken_on_ranks, 2, words, scenario)
    assert first == second == status and told.splitlines()[-1].startswith(said), told + silent
    assert status == 1 or "error" not in silent


@pytest.mark.distributed
def test_a_task_that_one_rank_cannot_run_fails_on_both_and_the_next_begins(run, root, run_ranks):
    words = [run, "--task", "own_zero_shot,image_folder_zero_shot", "--data", root, "--limit", 4]
    (status, out, told), (other, nothing, _) = run_ranks(broken_on_ranks, 2, words, "data")
    assert status == other == 2 and "1 of 2 tasks failed" in told and "own cannot be read here" in told
    assert list(json.loads(out)) == ["image_folder_zero_shot"] and nothing == ""


@pytest.mark.distributed
def test_a_suite_on_two_ranks_is_that_of_one_but_for_what_one_of_them_cannot_read(
    run, root, run_ranks, tmp_path, capsys
):
    words = [run, "--suite", "all", "--data", root, "--precision", "fp32", "--limit", 8, "--out"]
    assert main(["evaluate", *map(str, [*words, tmp_path / "one"])]) == 0
    capsys.readouterr()
    (status, out, told), (other, nothing, silent) = run_ranks(
        broken_on_ranks, 2, [*words, tmp_path / "two"], "data"
    )
    assert status == other == 0 and nothing == silent == "" and len(out.split()) == 3, told
    one, two = (json.loads((tmp_path / name / "suite.json").read_text())["tasks"] for name in ("one", "two"))
    assert one.keys() >= two.keys()  # other tests' own tasks are known in this process
    failed = {task for task, result in two.items() if "own cannot be read here" in result.get("failed", "")}
    assert failed == {task for task in two if task.startswith("own_") and "scores" in one[task]} != set()
    scored = {task for task, result in two.items() if "scores" in result}
    assert {"image_folder_probe", "sst2_probe", "glue_sst2"} <= scored
    for task in scored:
        for name, score in two[task]["scores"].items():
            assert score["value"] == pytest.approx(one[task]["scores"][name]["value"], abs=1e-6), task
    # what two ranks found is kept by one
    assert main(["evaluate", *map(str, [*words, tmp_path / "two"])]) == 0
    assert "image_folder_probe: kept from an earlier run" in capsys.readouterr().err


def test_a_task_that_fails_loses_no_other_ones_numbers(run, root, tmp_path, capsys):
    broken = tmp_path / "data"
    shutil.copytree(root, broken)
    picture = sorted((broken / "image_folder" / "test").rglob("*.*"))[0]
    picture.write_bytes(b"no picture")
    (run / "evaluations.json").unlink(missing_ok=True)
    names = "sst2_probe,image_folder_zero_shot,own_zero_shot"
    assert main(["evaluate", str(run), "--task", names, "--data", str(broken)]) == 2
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["sst2_probe", "own_zero_shot"]
    assert list(json.loads((run / "evaluations.json").read_text())) == ["sst2_probe", "own_zero_shot"]
    last = told.err.splitlines()[-1]
    assert last.startswith(
        "error: 1 of 3 tasks failed, the others' results are above; image_folder_zero_shot:"
    )
    assert picture.name in last and told.err.index("\nsst2_probe ") < told.err.index(picture.name)
    alone = "image_folder_zero_shot,image_folder_neighbours"
    assert main(["evaluate", str(run), "--task", alone, "--data", str(broken)]) == 2
    assert "error: all 2 tasks failed; image_folder_" in capsys.readouterr().err


def test_a_model_without_what_a_task_needs_says_so(root, tmp_path, capsys):
    run = write_run(tmp_path)[0]
    file = tmp_path / "matching.py"
    file.write_text(MATCHING)
    settings = json.loads((run / "config.json").read_text())
    found, _ = evaluated(capsys, run, "--task", file, "--data", root)
    assert found["own_matching"]["scores"]["mean"]["n"] == 9
    settings["objectives"]["itm"]["weight"] = 0.0
    (run / "config.json").write_text(json.dumps(settings))
    shutil.rmtree(run / "checkpoints")
    from checkpoint_helpers import write_checkpoint

    from flava_ds import config as configuration
    from flava_ds.families.flava.task import build_task

    config = configuration.load(run / "config.json")
    write_checkpoint(run / "checkpoints", 3, build_task(config).state_dict(), config)
    assert main(["evaluate", str(run), "--task", f"{file}:own_matching", "--data", str(root)]) == 2
    assert (
        "task own_matching needs Matcher (log odds of image-text pairs), which tiny (family 'flava')"
        in capsys.readouterr().err
    )


MATCHING = '''
"""A task of a stranger: the mean log odds of one's own pairs."""
from dataclasses import dataclass

import numpy as np

from flava_ds.evaluation.datasets.own_shards import OwnShards
from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.protocols import Matcher, Score
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM


@dataclass(frozen=True)
class Matching:
    name: str = "own_matching"
    about: str = "mean log odds of the pairs"
    needs: tuple = (Matcher,)
    data: OwnShards = OwnShards(reads="captions")

    def run(self, model, data):
        samples = data.test()
        ids = model.tokenizer.encode_batch([said[0] for said in samples.captions], model.most_tokens["pair"])
        pixels = Seen(samples, CLIP_TRANSFORM).batch(range(len(samples)), model.image_size)
        [odds] = model.need(Matcher, self.name).log_odds(pixels, [ids])
        values = odds.cpu().numpy()
        error = float(values.std() / np.sqrt(len(values)))
        return {"mean": Score(float(values.mean()), len(values), error, "nats")}


TASKS = (Matching(),)
'''
