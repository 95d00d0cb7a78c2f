"""The launch command: threads, devices, ports, and the checks before it."""

import base64
import dataclasses
import json
import os
import signal
import socket
import sys
import time

import pytest

from flava_ds.config.readers import ReaderConfig
from flava_ds.errors import ConfigError, DataError, UserError
from flava_ds.ranks import launch
from flava_ds.ranks.stop_signals import STOP_SIGNALS
from flava_ds.recipes import resolve


def test_one_rank_needs_no_launcher():
    command = launch.plan_launch("demo", ["--seed", "1"], ranks=1, gpus=1)
    assert command.arguments == [sys.executable, "-m", "flava_ds.train", "demo", "--seed", "1"]
    assert command.environment == {"PYTHONSAFEPATH": "1"}


def test_cores_are_shared_among_cpu_ranks(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert launch.cpu_environment(ranks=2, gpus=0) == {"OMP_NUM_THREADS": "4", "DS_ACCELERATOR": "cpu"}
    assert launch.cpu_environment(ranks=16, gpus=0)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.cpu_environment(ranks=2, gpus=0)["OMP_NUM_THREADS"] == "3"
    assert launch.cpu_environment(ranks=2, gpus=2) == {}


def test_more_ranks_than_gpus_is_refused():
    with pytest.raises(UserError, match=r"--ranks 4, but this machine has 2 GPUs; use --ranks 2"):
        launch.plan_launch("demo", [], ranks=4, gpus=2)


def test_ranks_get_the_devices_that_are_visible(monkeypatch):
    def devices(gpus: int) -> list:
        return json.loads(base64.urlsafe_b64decode(launch.world_info(2, gpus)))["localhost"]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(0) == devices(4) == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,7")
    assert devices(3) == ["5", "3"] and devices(0) == [0, 1]


def test_free_port_can_be_bound():
    port = launch.free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        assert listener.getsockname()[1] == port > 0


def test_text_of_a_command_is_what_a_shell_takes():
    command = launch.Launch(arguments=["run", "a b", "$HOME"], environment={"X": "1 2"})
    assert str(command) == "X='1 2' run 'a b' '$HOME'"


def test_run_without_sources_is_refused():
    config = resolve("flava_debug", [])
    empty = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={}))
    with pytest.raises(ConfigError, match="data.sources is empty"):
        launch.check_inputs(empty)


def test_a_source_with_a_reader_of_its_own_needs_no_shards():
    """Its reader decides what `shards` means, if anything."""
    config = resolve("flava_debug", ["--codebook-weights", "random"])
    own = dataclasses.replace(config.data.sources["pair"], reader=ReaderConfig(), shards="")
    launch.check_inputs(config.with_sources({"pair": own}))
    with pytest.raises(DataError, match="source 'pair': "):
        launch.check_inputs(config.with_sources({"pair": dataclasses.replace(own, reader=None)}))


def test_initial_weights_have_to_exist(tmp_path):
    config = resolve("flava_debug", [])
    text = dataclasses.replace(config.data.sources["text"], shards=str(tmp_path / "0.tar"))
    (tmp_path / "0.tar").touch()
    alone = dataclasses.replace(config.with_sources({"text": text}), initial_weights="gone")
    with pytest.raises(ConfigError, match="initial_weights 'gone': no such file or folder"):
        launch.check_inputs(alone)
    with pytest.raises(ConfigError, match="no such file; train one with `.* --out 'a b'`"):
        launch.check_inputs(dataclasses.replace(alone, codebook_weights="a b"))


def test_a_detector_has_to_exist_before_training(tmp_path):
    """It is only read when the model is evaluated, after days."""
    (tmp_path / "0.tar").touch()
    config = resolve("uniter_base", ["--model.detector", str(tmp_path / "gone")])
    (name,) = config.data.sources
    source = dataclasses.replace(config.data.sources[name], shards=str(tmp_path / "0.tar"))
    config = config.with_sources({name: source})
    with pytest.raises(ConfigError, match=r"model.detector '.*gone': no such file or folder"):
        launch.check_inputs(config)
    model = dataclasses.replace(config.model, detector="demo")
    launch.check_inputs(dataclasses.replace(config, model=model))


def test_supervised_run_is_torchruns():
    command = launch.plan_supervised("demo", ["--seed", "1"], ranks=2, gpus=2, restarts=3)
    supervisor = [
        sys.executable,
        "-m",
        "flava_ds.ranks.supervise",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
    ]
    assert command.arguments == [*supervisor, "--module", "flava_ds.train", "demo", "--seed", "1"]
    assert command.environment == {"PYTHONSAFEPATH": "1"}
    with pytest.raises(UserError, match="--ranks 3, but this machine has 2 GPUs"):
        launch.plan_supervised("demo", [], ranks=3, gpus=2, restarts=1)


def test_a_command_that_is_waited_for_ends_with_its_status_and_is_told_to_stop():
    def status_of(code: str) -> int:
        return launch.Launch(arguments=[sys.executable, "-c", code], environment={"MARK": "7"}).wait()

    assert status_of("import os, sys; sys.exit(int(os.environ['MARK']))") == 7
    assert status_of("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == 128 + signal.SIGKILL
    assert status_of("import sys; sys.exit(255)") == 255, "as ssh ends"
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    told = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    assert status_of(told) == 128 + signal.SIGTERM
    warned = "import os, signal, time; os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)"
    assert status_of(warned) == 128 + signal.SIGUSR1, "as Slurm sends it before a time limit"
    failing = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); {told}"
    assert status_of(failing) == 128 + signal.SIGTERM, "it was asked to stop, whatever its status"
    alone = "import os, signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); "
    alone += "os.kill(os.getppid(), signal.SIGINT); time.sleep(60); sys.exit(1)"
    begun = time.monotonic()
    assert status_of(alone) == 128 + signal.SIGINT, "it was asked to stop, and comes to its end before"
    assert time.monotonic() - begun < 50, "the command was not told of SIGINT"
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_single_rank_among_the_variables_of_another_job_is_refused_instead_of_waiting_for_it(
    monkeypatch, name
):
    monkeypatch.setenv(name, "8")
    with pytest.raises(UserError, match=f"{name} is 8: .*unset {name}"):
        launch.plan_launch("demo", [], ranks=1, gpus=0)
    assert "--world_info" in str(launch.plan_launch("demo", [], ranks=2, gpus=0))  # its launcher sets them
    monkeypatch.setenv(name, "1")
    assert launch.plan_launch("demo", [], ranks=1, gpus=0).arguments[-1] == "demo"
