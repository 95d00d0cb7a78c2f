"""Lines of a log: means over all ranks and steps, resuming, and what a reader finds in the header."""

import dataclasses
import json
from collections import Counter

import pytest
import torch
from toy import toy_config

from flava_ds.config import LoggingConfig
from flava_ds.training import metrics as metrics_module
from flava_ds.training.distributed import World, start
from flava_ds.training.metrics import Metrics, duration, open_log, show


def config_in(folder, tensorboard: bool = False):
    config = dataclasses.replace(toy_config(), logging=LoggingConfig(run_directory=str(folder), tensorboard=tensorboard))
    config.run_path.mkdir(parents=True, exist_ok=True)
    return config


def lines_of(config) -> list[dict]:
    return [json.loads(line) for line in (config.run_path / "log.jsonl").read_text().splitlines()]


def write_two_lines(folder: str) -> list[dict]:
    """Two steps in the first line, one in the second; sums differ by rank, counts are those of both."""
    world = start(30)
    metrics = Metrics(config_in(folder, tensorboard=True), world, gemm_rate=1e9, first_step=0)
    mine = 1.0 + world.rank
    for _ in range(2):
        sums = [{"mlm/loss": torch.tensor(3.0 * mine), "mlm/correct": torch.tensor(mine)}, {"mlm/loss": torch.tensor(1.0), "mlm/correct": torch.tensor(0.0)}]
        metrics.add(sums, {"mlm": 10}, samples=4, flops=1e6, wait_s=0.0, skipped=Counter({"truncated": world.rank}))
    metrics.add_gradient_norms({"mlm": torch.tensor(2.5)})
    first = metrics.write(1, "text", "books", 0.1, torch.tensor(0.5), torch.tensor(0))
    metrics.add([{"mim/loss": torch.tensor(mine)}], {"mim": 0}, samples=4, flops=1e6, wait_s=0.0, skipped=Counter())
    second = metrics.write(2, "image", "photos", 0.1, torch.tensor(float("nan")), torch.tensor(3))
    metrics.close()
    return [first, second]


@pytest.mark.distributed
def test_lines_are_means_over_ranks_and_steps(run_ranks, tmp_path):
    for first, second in run_ranks(write_two_lines, 2, str(tmp_path)):
        assert first["loss/mlm"] == pytest.approx(2 * (3 + 1 + 6 + 1) / 20) and first["accuracy/mlm"] == pytest.approx(2 * (1 + 2) / 20)
        assert first["skipped_samples"] == {"truncated": 2} and first["gradient_norm/mlm"] == 2.5 and first["grad_norm"] == 0.5
        assert first["mfu"] == pytest.approx(first["flops_per_second"] / 1e9)
        assert first["samples_per_second"] / first["flops_per_second"] == pytest.approx(16 / 4e6)
        assert not any(name.endswith(("/mlm", "/mim")) for name in second) and second["skipped_updates"] == 3  # no terms, no mean
    config = config_in(tmp_path, tensorboard=True)
    header, first, second = lines_of(config)
    assert {"versions", "hardware", "git", "config", "config_sha256", "started"} <= header.keys() and header["hardware"]["ranks"] == 2
    assert (first["step"], first["source"], second["grad_norm"]) == (1, "books", None)  # NaN is no JSON
    assert list((config.run_path / "tensorboard").iterdir())


def main_world() -> World:
    return World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), host_group=None)


def test_resuming_drops_the_lines_that_will_be_written_again(tmp_path):
    config = config_in(tmp_path)
    with open_log(config, main_world(), 1.0, 0) as file:
        file.writelines(json.dumps({"step": step, "kind": "text"}) + "\n" for step in range(5))
        file.write('{"step": 5, "ki')  # a kill in the middle of a line
    started = lines_of_complete(config)[0]["started"]
    with open_log(config, main_world(), 1.0, 3) as file:
        file.write(json.dumps({"step": 3}) + "\n")
    header, *steps = lines_of(config)
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert header["started"] == started and [entry["step"] for entry in header["resumed"]] == [3]
    open_log(config, main_world(), 1.0, 0).close()
    assert len(lines_of(config)) == 1  # a fresh start begins a fresh log


def lines_of_complete(config) -> list[dict]:
    return [json.loads(line) for line in (config.run_path / "log.jsonl").read_text().splitlines() if line.endswith("}")]


def test_console_line_shows_what_a_person_watches(capsys):
    line = {
        "step": 9,
        "loss/mlm": 2.5,
        "loss/mim": 3.25,
        "samples_per_second": 12.34,
        "data_wait": 0.07,
        "flops_per_second": 2.5e9,
        "mfu": 0.31,
        "eta_s": 3723.0,
        "skipped_samples": {"undecodable": 2, "empty caption": 1},
    }
    show(line, 100)
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert all(
        part in text
        for part in (
            "step 10/100",
            "mlm 2.500",
            "mim 3.250",
            "12.3 samples/s",
            "data wait 7%",
            "2.5 GFLOP/s",
            "31%",
            "1:02:03",
            "| skipped: undecodable 2, empty caption 1",
        )
    )
    assert duration(59.9) == "0:00:59"


def test_git_state_is_none_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert metrics_module.git_state() is None
