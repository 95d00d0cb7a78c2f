"""What `flava-ds evaluate` keeps of results, states and weights, and what it says where it cannot."""

import errno
import json

import pytest
from evaluate_command import evaluated, write_data
from sample_runs import write_run

import flava_ds
from flava_ds.cli import main
from flava_ds.demo.evaluation import evaluator
from flava_ds.evaluation import results
from flava_ds.storage.atomic import hold


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_results_that_may_not_be_kept_are_printed_all_the_same(run, root, capsys, monkeypatch):
    """As with somebody else's run, which one may read."""

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(results, "write_json", refuse)
    found, told = evaluated(
        capsys, run, "--task", "image_folder_zero_shot,image_folder_neighbours", "--data", root
    )
    assert list(found) == ["image_folder_zero_shot", "image_folder_neighbours"]
    line = f"{run}/evaluations.json: Permission denied; the results are printed, but not kept"
    assert told.splitlines().count(line) == 2


def test_results_of_a_run_whose_file_another_process_holds_are_printed_all_the_same(
    run, root, capsys, monkeypatch
):
    monkeypatch.setattr(results, "PATIENCE_S", 0.2)
    with hold(run / ".evaluations.json.lock"):
        names = "image_folder_zero_shot,image_folder_neighbours"
        found, told = evaluated(capsys, run, "--task", names, "--data", root)
    line = f"{run}/evaluations.json: another process is writing there; the results are printed, but not kept"
    assert len(found) == 2 and told.splitlines().count(line) == 2


def test_a_full_disk_loses_no_numbers_of_the_demo(run, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(evaluator, "find_data", lambda config: run)
    monkeypatch.setattr(evaluator, "measure_run", lambda folder: {"metrics": {"recall": 0.5}})
    monkeypatch.setattr(evaluator, "write_json", full)
    assert main(["evaluate", str(run)]) == 2
    printed, told = capsys.readouterr()
    assert json.loads(printed) == {"metrics": {"recall": 0.5}}
    assert told.splitlines()[-1].startswith(f"error: {run}/evaluation.json: No space left on device")


def test_fine_tuning_that_cannot_be_kept_is_refused_before_it_trains(root, tmp_path, capsys):
    run, _ = write_run(tmp_path)
    (run / "fine_tuning").touch()  # no folder can be made there
    assert main(["evaluate", str(run), "--task", "glue_sst2", "--data", str(root)]) == 2
    assert "--keep: " in (said := capsys.readouterr().err) and "give another folder" in said, said


def test_a_fine_tuning_keeps_its_state_with_the_run_or_where_it_is_told(run, root, tmp_path, capsys):
    words = ["--task", "glue_sst2", "--data", root]
    found, told = evaluated(capsys, run, *words)
    score = found["glue_sst2"]["scores"]["accuracy"]
    assert score["published"] == [] and "samples instead of 872 here" in told  # of so few, no number compares
    assert found["glue_sst2"]["fine_tuning"]["lr"] == 1e-5
    assert "glue_sst2: update 10 of 10" in told
    assert (run / "fine_tuning" / "step_00000012" / "glue_sst2.json").is_file()
    again, told = evaluated(capsys, run, *words)
    assert again["glue_sst2"]["scores"] == found["glue_sst2"]["scores"] and "finished before" in told
    evaluated(capsys, run, *words, "--keep", tmp_path / "kept", "--limit", 8)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["glue_sst2.json"]


def test_the_weights_of_a_fine_tuning_are_kept_if_it_is_told_to(run, root, tmp_path, capsys):
    words = ["--task", "glue_sst2", "--data", root, "--keep", tmp_path / "kept", "--keep-weights"]
    found, told = evaluated(capsys, run, *words)
    file = tmp_path / "kept" / "glue_sst2.best.safetensors"
    assert f" are {file}" in told
    model = flava_ds.load(run, precision="fp32").fine_tuned(file)
    rows = [line.split("\t") for line in (root / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    said = model.predict([text for text, _ in rows]).argmax(1)
    right = sum(place == int(label) for place, (_, label) in zip(said.tolist(), rows, strict=True))
    assert right / len(rows) == found["glue_sst2"]["scores"]["accuracy"]["value"]
