"""The module that launchers start: its exit status and what it prints."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys

import pytest
import torch
from flava_kernels.dispatch import UnsupportedInputError
from real_runs import Job, real_config

from flava_ds import train
from flava_ds.errors import UserError
from flava_ds.ranks import distributed, roll_call, run_lock
from flava_ds.ranks.distributed import barrier, start
from flava_ds.ranks.lock_files import NAME


def test_user_errors_are_one_line_with_status_2(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for words, said in (
        ([], "must be a recipe"),
        (["flava_bse"], "did you mean 'flava_base'"),
        (["demo", "--optimizer.lrr", "1"], "--optimizer.lr"),
    ):
        assert train.main(words) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_before_ranks_have_met_each_tells_an_error_in_its_turn_and_none_leaves_without_a_word(
    capsys, monkeypatch
):
    """A rank that left at once had the launcher end the first of its machine before that had told why."""
    waited = []
    monkeypatch.setattr(train.time, "sleep", waited.append)
    for rank in ("0", "1", "3"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert train.main(["flava_bse"]) == 2
        assert capsys.readouterr().err.count("did you mean 'flava_base'") == 1
    assert waited == [train.UNMET_S, 3 * train.UNMET_S]


def test_kernels_that_cannot_run_end_a_run_in_one_line(capsys):
    def train_with_kernels(words):
        raise UnsupportedInputError("FLAVA_KERNELS=triton, but layer_norm cannot run its kernels: no GPU")

    assert train.main([], train_with_kernels) == 1
    assert capsys.readouterr().err == (
        "error: FLAVA_KERNELS=triton, but layer_norm cannot run its kernels: no GPU\n"
    )


def test_a_file_that_a_rank_cannot_read_is_one_line_and_an_error_without_a_file_is_none_of_the_users(capsys):
    def train_from(*what):
        raise PermissionError(13, "Permission denied", *what)

    assert train.main([], lambda _: train_from("runs/theirs/manifest.json")) == 2
    assert capsys.readouterr().err == (
        "error: runs/theirs/manifest.json: Permission denied; name another place, or fix this one\n"
    )
    with pytest.raises(PermissionError):
        train.main([], lambda _: train_from())


@pytest.mark.parametrize("module", ["matplotlib", "somebody_elses"])
def test_a_package_that_is_absent_names_the_extra_that_brings_it(capsys, module):
    def train_without(words):
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    if module == "somebody_elses":
        with pytest.raises(ModuleNotFoundError):
            train.main([], train_without)
    else:
        assert train.main([], train_without) == 2
        said = capsys.readouterr().err
        assert said == "error: matplotlib is not installed; `pip install 'flava_ds[demo]'`\n"


def test_what_the_launcher_appends_is_swallowed_and_debug_shows_the_traceback(capsys):
    assert train.main(["--local_rank=3", "nothing", "--no_local_rank", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "no recipe named 'nothing'" in error and "Traceback" in error


def test_a_limit_of_threads_is_one_line(capsys, monkeypatch):
    def start_one(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(train.threading.Timer, "start", start_one)
    assert train.main([], start_one) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no further thread can be started; raise") and said.count("\n") == 1


@pytest.mark.parametrize("error", [UserError, RuntimeError, ZeroDivisionError, KeyboardInterrupt])
def test_the_runs_folder_is_free_before_rank_0_waits_for_the_others(tmp_path, monkeypatch, error):
    """Whose launcher ends it when they have ended: the next start took the lock over from a dead process."""
    monkeypatch.setattr(distributed, "keep_store", lambda: seen.append((tmp_path / NAME).exists()))
    seen = []

    def fail(words):
        run_lock.hold(tmp_path)
        assert (tmp_path / NAME).exists()
        raise error("ends")

    with contextlib.suppress(RuntimeError, ZeroDivisionError):
        train.main([], fail)
    assert seen == [False]


@pytest.mark.parametrize("speaks", [True, False])
def test_rank_0_keeps_the_store_whoever_speaks(monkeypatch, speaks):
    """A third rank that ends in the same moment found no store to ask, and told its error, too."""
    monkeypatch.setattr(distributed, "keep_store", lambda: kept.append(True))
    monkeypatch.setattr(distributed, "agree_on_end", lambda status: (speaks, status))
    monkeypatch.setattr(distributed, "have_met", lambda: True)
    kept = []
    assert train.main(["flava_bse"]) == 2 and kept == [True]


def test_stack_traces_of_lost_connections_are_left_to_debug(monkeypatch):
    """They would bury the line of the rank that knows why the run ends."""
    for words, level in ((["nothing", "--debug"], None), (["nothing"], "ERROR")):
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")  # noted, and restored in the end
        monkeypatch.delenv("TORCH_CPP_LOG_LEVEL")
        train.main(words)
        assert os.environ.get("TORCH_CPP_LOG_LEVEL") == level


def end_as_rank_0_fails(error: type[Exception]) -> tuple[object, str]:
    """Meets the other rank, which rank 0 then leaves; returns the exit status or error, and what is said."""

    def meet(words: list[str]) -> int:
        world = start(30)
        roll_call.begin(world)
        barrier(world)
        if world.is_main:
            raise error("of a plugin")
        barrier(world)
        return 0

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status: object = train.main([], meet)
        except error as raised:
            status = str(raised)
    return status, said.getvalue()


@pytest.mark.distributed
@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_an_error_that_nobody_expected_is_told_by_its_rank_alone(run_ranks, error):
    """Its traceback, which the interpreter prints; the other rank took it for killed."""
    assert run_ranks(end_as_rank_0_fails, 2, error) == [("of a plugin", ""), (1, "")]


@pytest.mark.distributed
def test_what_all_ranks_would_warn_of_alike_is_told_once(tmp_path):
    """Of the model, of a folder of shards, and of a stream that other ranks read on."""
    config = real_config(tmp_path, codebook_weights="random")
    text = dataclasses.replace(config.data.sources["text"], reading="stream")
    data = dataclasses.replace(config.data, sources=config.data.sources | {"text": text})
    config = dataclasses.replace(config, data=data)
    (tmp_path / "data" / "pairs-train" / "more.tar.gz").touch()
    for ranks, steps in ((1, 4), (2, 5)):
        training = dataclasses.replace(config.training, total_steps=steps)
        job = Job(dataclasses.replace(config, training=training), ranks)
        assert job.wait() == [0] * ranks, job.said()
    for told in ("codebook is random", "more.tar.gz", "and is now read by 2 ranks"):
        assert job.said().count(told) == 1, job.said()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_a_run_that_cannot_be_built_ends_with_status_2(tmp_path):
    words = ["flava_debug", "--training.precision", "fp16", "--logging.run-directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "flava_ds.train", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert (
        "error: training.precision 'fp16' does not run on a CPU; use 'bf16' or 'fp32'" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not list(tmp_path.iterdir()), "refused before anything is written"


@pytest.mark.slow
def test_ranks_without_a_launcher_unpack_the_demos_data_and_load_no_compiler(tmp_path):
    """As pods of a Kubernetes job do, which share a volume and where nothing else has looked before. Loading
    torch's compiler, which compiles nothing here, was a third of what their start computes.
    """
    words = ["flava_debug", "--training.total-steps", "1", "--schedule.warmup-steps", "0"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flava_ds.train", *words, "--logging.no-tensorboard"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "deepspeed" in imported and "torch._dynamo" not in imported
    assert done.returncode == 0 and "finished 1 steps" in done.stderr, done.stderr[-3000:]
    assert (tmp_path / "runs" / "demo_data" / "pairs-train").is_dir()
