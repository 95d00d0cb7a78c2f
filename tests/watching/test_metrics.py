"""Records of a log: means over all ranks and steps, and what is said of ranks and sources."""

import contextlib
import dataclasses
import io
import json
import logging
import math
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy import Toy, toy_config, update_of

from flava_ds.batch import Batch, ReadReport
from flava_ds.config import LoggingConfig
from flava_ds.errors import UserError
from flava_ds.ranks.distributed import log, start
from flava_ds.training.task import StepOutput
from flava_ds.training.watcher import Update
from flava_ds.watching import metrics as metrics_module
from flava_ds.watching import stragglers
from flava_ds.watching.log_fields import field_of
from flava_ds.watching.metrics import Metrics, device_behind, peak_memory

PROGRESS = {"source_share/books": 0.5, "source_target/books": 0.4, "epoch/books": 0.1}


def config_in(folder):
    config = dataclasses.replace(
        toy_config(pad_to_multiple_of=50),
        logging=LoggingConfig(run_directory=str(folder), tensorboard=True, straggler_lines=1),
    )
    config.run_path.mkdir(parents=True, exist_ok=True)
    return config


def update(sums, counts, read: ReadReport | None = None, **changes) -> Update:
    """A step of four samples, its sums by micro-batch."""
    outputs = [StepOutput(torch.tensor(0.0), own) for own in sums]
    tensors, numbers = {}, {}
    if read is not None and read.tokens:
        tensors, numbers = {"input_ids": torch.zeros(read.tokens + 10)}, {"input_ids": read.tokens}
    batch = Batch(
        kind="text", source="books", size=4, tensors=tensors, numbers=numbers, read=read or ReadReport()
    )
    return update_of(outputs=outputs, counts=counts, batches=[batch], **changes)


def metrics_in(config, world) -> Metrics:
    """Metrics of the toy's run, without an engine that computes."""
    engine = SimpleNamespace(module=Toy(), world=world, skipped=torch.tensor(0))
    return Metrics(config, engine, 1e9, 0, lambda step: PROGRESS, lambda step: {"books": 10.0 - step})


class Time:
    """A clock that moves when told."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def speak_while(do, *arguments) -> tuple:
    """Returns what a function returns and what it prints and logs: ranks are forked from a server, whose
    output is not this test's.
    """
    said = io.StringIO()
    log.addHandler(handler := logging.StreamHandler(said))
    with contextlib.redirect_stdout(said):
        result = do(*arguments)
    log.removeHandler(handler)
    return result, said.getvalue()


def two_lines(folder: str) -> tuple:
    return speak_while(write_two_lines, folder)


def write_two_lines(folder: str) -> list[dict]:
    """Two steps in the first line, one in the second; sums differ by rank, counts are those of both. Rank 1
    computes for long, then waits for data.
    """
    world = start(30)
    metrics = metrics_in(config_in(folder), world)
    mine = 1.0 + world.rank
    stragglers.time = clock = Time()
    for _ in range(2):
        metrics.heard(0, [])
        clock.now += 0.5 if world.rank == 1 else 0.25
        metrics.clock.stop()
        sums = [
            {"mlm/loss": torch.tensor(3.0 * mine), "mlm/correct": torch.tensor(mine)},
            {"mlm/loss": torch.tensor(1.0), "mlm/correct": torch.tensor(0.0)},
        ]
        read = ReadReport(tokens=90, cut_tokens=20 * world.rank, skipped=Counter({"truncated": world.rank}))
        metrics.after_update(update(sums, {"mlm": 10}, read))
    metrics.add_gradient_norms({"gradient_norm/mlm": torch.tensor(2.5)})
    first = metrics.write(update_of(step=1))
    photos = {"source": "photos", "kind": "image", "waited_s": 0.01 + world.rank}
    read = ReadReport(skipped={"undecodable": 1})
    metrics.after_update(update([{"mim/loss": torch.tensor(0.0)}], {"mim": 0}, read, **photos))
    metrics.engine.skipped = torch.tensor(3)
    second = metrics.write(update_of(step=2, grad_norm=torch.tensor(float("nan")), **photos))
    metrics.close()
    return [first, second]


@pytest.mark.distributed
def test_records_are_means_over_ranks_and_steps(run_ranks, tmp_path):
    found = run_ranks(two_lines, 2, str(tmp_path))
    for (first, second), _ in found:
        assert first["loss/mlm"] == pytest.approx(2 * (3 + 1 + 6 + 1) / 20) and first[
            "accuracy/mlm"
        ] == pytest.approx(2 * (1 + 2) / 20)
        assert (
            first["skipped_samples/books/truncated"] == 2
            and second["skipped_samples/photos/undecodable"] == 2
        )
        assert "skipped_samples/books/truncated" not in second
        assert first["cut_tokens/books"] == pytest.approx(40 / 400) and not any(
            name.startswith("cut_tokens") for name in second
        )
        assert first["padding/books"] == pytest.approx(10 / 100) and "padding/books" not in second
        assert first["gradient_norm/mlm"] == 2.5 and first["grad_norm"] == 0.5 and first["epoch/books"] == 0.1
        assert first["mfu"] == pytest.approx(first["flops_per_second"] / 1e9)
        assert first["mfu_with_targets"] == pytest.approx(1.5 * first["mfu"]), "half as much for targets"
        assert first["samples_per_second"] / first["flops_per_second"] == pytest.approx(16 / 4e6)
        # no terms, no mean
        assert not any(name.endswith(("/mlm", "/mim")) for name in second) and second["skipped_updates"] == 3
        assert (first["slowest_rank"], first["slowest_in"], second["slowest_rank"], second["slowest_in"]) == (
            1,
            "compute",
            1,
            "data",
        )
        assert (first["rank_seconds/slowest"], first["rank_seconds/median"]) == (0.5, 0.25)
        assert second["rank_seconds/slowest"] == pytest.approx(1.01) and second[
            "rank_seconds/median"
        ] == pytest.approx(0.01)
        assert all(field_of(key) for key in (*first, *second))
    config = config_in(tmp_path)
    header, first, second = [
        json.loads(line) for line in (config.run_path / "log.jsonl").read_text().splitlines()
    ]
    assert {"versions", "hardware", "git", "config", "config_sha256", "started"} <= header.keys() and header[
        "hardware"
    ]["ranks"] == 2
    assert (first["step"], first["source"], second["grad_norm"]) == (1, "books", None)  # NaN is no JSON
    assert list((config.run_path / "tensorboard").iterdir())
    (_, said), (_, silence) = found
    assert said.count("samples/s") == 2 and said.count("slow: rank 1 on ") == 2 and not silence, (
        "one line for all ranks"
    )
    assert (
        said.count("all ranks wait for rank 1 on ") == 2
        and "it computes slowly" in said
        and "it waits for data" in said
    )


def paused_rate(folder: str) -> float:
    metrics_module.time = clock = Time()
    metrics = metrics_in(config_in(folder), start(30))
    clock.now += 100.0  # evaluations are built
    metrics.on_start(0)
    with metrics.paused():
        clock.now += 60.0
    clock.now += 0.5
    metrics.after_update(update([], {}))
    record = metrics.write(update_of())
    assert not any(key.startswith(("slowest", "rank_seconds")) for key in record), "one rank waits for nobody"
    assert all(
        value is not None and (not isinstance(value, float) or math.isfinite(value))
        for value in record.values()
    )
    return record["seconds_per_step"]


def test_pauses_are_left_out_of_rates(run_ranks, tmp_path):
    assert run_ranks(paused_rate, 1, str(tmp_path)) == [0.5]


def loss_over_no_terms(folder: str) -> str:
    metrics = metrics_in(config_in(folder), start(30))
    metrics.after_update(update([{"mim/loss": torch.tensor(2.5)}], {"mim": 0}))
    with pytest.raises(UserError) as caught:
        metrics.write(update_of())
    return str(caught.value) if caught.value.on_all_ranks else "one rank alone"


def test_a_loss_over_no_terms_ends_the_run(run_ranks, tmp_path):
    (said,) = run_ranks(loss_over_no_terms, 1, str(tmp_path))
    assert said.startswith("objective 'mim' has a loss of 2.5 over no terms: its count() has found none")


def zero_of_rows_that_are_no_numbers(folder: str) -> float:
    metrics = metrics_in(config_in(folder), start(30))
    rows = torch.tensor([math.nan])
    metrics.after_update(update([{"mim/loss": (rows * 0).sum()}], {"mim": 0}))
    return metrics.write(update_of())["loss/mim"]


def test_a_zero_of_rows_that_are_no_numbers_is_left_to_the_divergence_watch(run_ranks, tmp_path):
    assert math.isnan(run_ranks(zero_of_rows_that_are_no_numbers, 1, str(tmp_path))[0])


def test_peak_memory_of_a_process_is_what_the_system_counts():
    def counted() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    assert device_behind(torch.device("cpu")) == {}, "the host is the device"
    few = 32 * 2**20  # the two are counted in steps
    assert counted() - few <= peak_memory(torch.device("cpu")) <= counted() + few


@pytest.mark.gpu
def test_a_gpu_is_behind_by_the_work_that_is_queued():
    device, matrix = torch.device("cuda", 0), torch.randn(8192, 8192, device="cuda")
    matrix @ matrix
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    queued = time.perf_counter() - begun
    [behind] = device_behind(device).values()
    whole = time.perf_counter() - begun
    assert queued < behind <= whole and device_behind(device)["device_behind_s"] < 0.1 * behind


def said_of_logs(folder: str) -> list[str]:
    """What is said when a file of the logs cannot be written, in the middle of a run and at its start."""
    config, world, said = config_in(Path(folder)), start(60), []
    metrics = metrics_in(config, world)
    metrics.after_update(update([], {"mlm": 1}))
    (config.run_path / "metrics.prom").mkdir()
    (config.run_path / "log.jsonl").unlink()
    (config.run_path / "log.jsonl").mkdir()
    for write in (lambda: metrics.write(update_of()), lambda: metrics_in(config, world)):
        try:
            write()
        except UserError as error:
            said.append(str(error))
    return said


def test_logs_that_cannot_be_written_are_one_line(run_ranks, tmp_path):
    (said,) = run_ranks(said_of_logs, 1, str(tmp_path))
    assert len(said) == 2 and all(
        "the logs of" in line and "start the same command again" in line for line in said
    ), said
    assert all("log.jsonl" in line for line in said), "metrics.prom, which cannot be written, is a warning"
