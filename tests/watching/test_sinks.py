"""The files that records go to."""

import contextlib
import dataclasses
import json
import os
import re
import resource
import signal
import sys
import time
import tracemalloc

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_metrics import config_in

from flava_ds.config import plain_files
from flava_ds.errors import ConfigError, UserError
from flava_ds.ranks.distributed import log
from flava_ds.watching.sinks import (
    Console,
    JsonLines,
    Prometheus,
    Sink,
    Spared,
    TensorBoard,
    WeightsAndBiases,
    open_sinks,
)

START = {"started": "then", "versions": {}, "git": None, "hardware": {}, "config_sha256": "0"}


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_all(sink, *records) -> None:
    for record in records:
        sink.write(record)
    sink.close()


def test_resuming_drops_the_lines_that_will_be_written_again(tmp_path):
    path = tmp_path / "log.jsonl"
    write_all(JsonLines(path, START, 0), *({"step": step, "lr": 0.1} for step in range(5)))
    with path.open("a") as file:
        file.write('{"step": 5, "lr')  # a kill in the middle of a line
    write_all(JsonLines(path, {**START, "started": "now"}, 3), {"step": 3, "lr": 0.2})
    header, *steps = lines_of(path)
    assert [(line["step"], line["lr"]) for line in steps] == [(0, 0.1), (1, 0.1), (2, 0.1), (3, 0.2)]
    assert header["started"] == "then" and [
        (entry["step"], entry["started"]) for entry in header["resumed"]
    ] == [(3, "now")]
    write_all(JsonLines(path, START, 0))
    assert len(lines_of(path)) == 1  # a fresh start begins a fresh log


ODD_LOG = "\n".join(
    [
        '{"step": 1, "lr": 9}',
        '{"started": "then", "resumed": [{"step": 1}], "lr": 0}',
        '{"step":2,"loss/mlm":NaN,  "word": "\u00e9"}',
        '{"step": 7, "lr": 1e-05}',
        "[1, 2]",
        "no JSON",
        '{"step": 3, "lr": 1, "lr": 2}',
        '{"step": 3, "loss": null, "kind": "\ud800"}'.encode("ascii", "backslashreplace").decode(),
        '{"step": 4, "accuracy": 1}',
        '{"step": "5", "lr": 1}',
        '{"started": "another"}',
        '{"step": 1, "lr": Infinity}\r{"step": 0, "lr": 1}\x0b{"step": -1, "lr": 2}\u2028 {"step": 2.0}',
        "",
        '{"step": 5, "lr": 0.1}',
        '{"step": 4, "lr',
    ]
)


def kept_by_a_plain_reader(data: bytes, step: int) -> tuple[dict, bytes]:
    """The header and the lines that a resumed run keeps, from the whole text at once."""
    header, steps = {}, {}
    for text in data.decode(errors="replace").replace("\r\n", "\n").splitlines():
        with contextlib.suppress(ValueError):
            line = plain_files.loads(text)
            numbered = isinstance(line, dict) and isinstance(line.get("step"), int)
            if numbered and any(key == "lr" or key.startswith("loss") for key in line):
                steps[line["step"]] = line
            elif isinstance(line, dict):
                header = header or line
    kept = [steps[number] for number in sorted(steps) if number < step]
    return header, "".join(json.dumps(line) + "\n" for line in kept).encode()


@pytest.mark.parametrize("end", [b"", b"\n", b"\xff\xc3", b'\r\n{"step": 6, "lr": 1, "word": "\xe2\x82"}\n'])
@pytest.mark.parametrize("step", [1, 5, 8])
def test_of_an_odd_log_the_same_is_kept_to_the_byte(tmp_path, end, step):
    """Lines of other programs, repeated, cut off, in disorder, with other ends, or of two headers."""
    path, data = tmp_path / "log.jsonl", ODD_LOG.encode() + end
    header, kept = kept_by_a_plain_reader(data, step)
    assert header["started"] == "then" and kept.count(b"\n") >= 2
    again = {**START, "started": "now"}
    path.write_bytes(data)
    JsonLines(path, again, step).close()
    resumed = {**header, "resumed": [{"step": 1}, {"step": step, **again}]}
    assert path.read_bytes() == json.dumps(resumed).encode() + b"\n" + kept
    path.write_bytes(data)
    sink = JsonLines(path, START, 9)
    sink.go_back(step, {"to": step})
    sink.close()
    first, _, rest = path.read_bytes().partition(b"\n")
    assert rest == kept and json.loads(first)["rollbacks"] == [{"to": step}]


def test_a_long_log_is_not_held_as_objects(tmp_path):
    """50,000 records took 0.65 GiB at every start of a run."""
    path = tmp_path / "log.jsonl"
    record = {f"{name}/{part}": 1 / 3 for name in ("loss", "accuracy", "share") for part in range(20)}
    write_all(JsonLines(path, START, 0), *({"step": step, **record} for step in range(2000)))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        sink = JsonLines(path, START, 1900)
        sink.go_back(1800, {})
        assert tracemalloc.get_traced_memory()[1] < 2 * size
    finally:
        tracemalloc.stop()
    sink.close()
    assert len(lines_of(path)) == 1801


@pytest.mark.parametrize("clock", [time.time, lambda: 1e9], ids=["one clock", "another behind it"])
def test_tensorboard_has_every_number_and_forgets_what_a_resumed_run_repeats(tmp_path, monkeypatch, clock):
    write_all(
        TensorBoard(tmp_path, 0),
        *({"step": step, "kind": "text", "loss/mlm": 9.0 - step, "grad_norm": None} for step in range(4)),
    )
    monkeypatch.setattr(time, "time", clock)
    write_all(TensorBoard(tmp_path, 2), {"step": 2, "loss/mlm": 5.0, "slowest_rank": 3})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss/mlm", "slowest_rank"}
    assert [(event.step, event.value) for event in events.Scalars("loss/mlm")] == [
        (0, 9.0),
        (1, 8.0),
        (2, 5.0),
    ]


def test_tensorboard_forgets_a_run_that_was_killed_and_starts_anew_in_its_folder(tmp_path):
    write_all(TensorBoard(tmp_path, 0), *({"step": step, "loss/mlm": 9.0} for step in range(4)))
    write_all(TensorBoard(tmp_path, 0), {"step": 0, "loss/mlm": 5.0})
    (event,) = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/mlm")
    assert (event.step, event.value) == (0, 5.0)


def test_tensorboard_has_a_record_as_soon_as_it_is_written(tmp_path):
    sink = TensorBoard(tmp_path, 0)
    sink.write({"step": 0, "loss/mlm": 9.0})
    assert [event.value for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss/mlm")] == [9.0]
    sink.close()


class Flaky(Sink):
    """Cannot write the records of some steps."""

    def __init__(self, bad: set[int], error: Exception) -> None:
        self.bad, self.error, self.steps = bad, error, []

    def write(self, record: dict) -> None:
        if record["step"] in self.bad:
            raise self.error
        self.steps.append(record["step"])

    def close(self) -> None:
        pass


def test_a_run_outlives_a_sink_that_fails_and_says_what_it_lacks(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    flaky = Flaky({1, 2, 4}, ConnectionError("the server is\ngone"))
    write_all(Spared("logging.sinks.mine", flaky), *({"step": step} for step in range(5)))
    failed = "logging.sinks.mine cannot be written (the server is gone); it lacks the records from step"
    assert flaky.steps == [0, 3] and caplog.messages == [
        f"{failed} 1 on, which log.jsonl has",
        "logging.sinks.mine writes again; it lacks the records from step 1 to 2",
        f"{failed} 4 on, which log.jsonl has",
        "logging.sinks.mine lacks the records from step 4 on; log.jsonl has them",
    ]
    caplog.clear()
    write_all(Spared("logging.sinks.mine", Flaky({0}, KeyError("lr"))), {"step": 0})
    assert f"({__file__}:" in caplog.messages[0] and "KeyError: 'lr')" in caplog.messages[0]
    with pytest.raises(UserError, match="stop here"):
        Spared("logging.sinks.mine", Flaky({0}, UserError("stop here"))).write({"step": 0})


def test_tensorboard_goes_on_behind_a_full_disk_and_when_its_folder_is_back(tmp_path):
    sink, limits = TensorBoard(tmp_path / "here", 0), resource.getrlimit(resource.RLIMIT_FSIZE)
    sink.write({"step": 0, "loss/mlm": 9.0})
    size = next((tmp_path / "here").iterdir()).stat().st_size
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            sink.write({"step": 1, "loss/mlm": 8.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(FileNotFoundError):
        sink.write({"step": 2, "loss/mlm": 7.0})
    (tmp_path / "there").rename(tmp_path / "here")
    sink.write({"step": 3, "loss/mlm": 6.0})
    events = EventAccumulator(str(tmp_path / "here")).Reload().Scalars("loss/mlm")
    assert [(event.step, event.value) for event in events] == [(0, 9.0), (3, 6.0)]


def test_a_log_that_is_moved_away_is_not_written_where_no_start_would_find_it(tmp_path):
    sink = JsonLines(tmp_path / "log.jsonl", START, 0)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(FileNotFoundError):
        sink.write({"step": 0})


def test_a_console_that_cannot_be_written_is_named(monkeypatch):
    numbers = ("samples_per_second", "data_wait", "flops_per_second", "mfu", "peak_memory_gib", "eta_s")
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it writes once more
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            Console(2).write({"step": 0, **dict.fromkeys(numbers, 1.0)})
        monkeypatch.undo()


def test_every_start_of_a_run_is_noted(tmp_path):
    config = config_in(tmp_path)
    for step in (0, 40):
        for sink in open_sinks(config, START, step):
            sink.close()
    starts = json.loads((config.run_path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 40] and starts[0]["versions"] == {}
    (config.run_path / "environment.json").write_text("")  # as a machine that went down may leave it
    for sink in open_sinks(config, START, 60):
        sink.close()
    assert [start["step"] for start in json.loads((config.run_path / "environment.json").read_text())] == [60]


RECORD = {
    "step": 3,
    "time": 1.75e9,
    "kind": "pair",
    "loss/mlm": 2.5,
    "grad_norm": None,
    "skipped_samples/a b/no image": 2,
    "skipped_updates": 1,
}


def test_prometheus_file_holds_the_latest_numbers_and_adds_up_counts(tmp_path):
    path = tmp_path / "metrics.prom"
    write_all(
        Prometheus(path, 'a "run"\\'),
        {**RECORD, "loss/itm": 0.5},
        {**RECORD, "step": 4, "skipped_samples/c/truncated": 1},
    )
    run = r'run="a \"run\"\\"'
    assert parse(path.read_text()) == {
        "flava_ds_step": ("gauge", {f"{{{run}}}": 4.0}),
        "flava_ds_time": ("gauge", {f"{{{run}}}": 1.75e9}),
        "flava_ds_grad_norm": ("gauge", {f"{{{run}}}": "NaN"}),
        "flava_ds_loss": ("gauge", {f'{{objective="mlm",{run}}}': 2.5}),
        "flava_ds_skipped_samples_total": (
            "counter",
            {
                f'{{reason="no image",{run},source="a b"}}': 4.0,
                f'{{reason="truncated",{run},source="c"}}': 1.0,
            },
        ),
        "flava_ds_skipped_updates_total": ("counter", {f"{{{run}}}": 1.0}),
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.prom"], (
        "replaced as a whole, nothing left over"
    )


def parse(text: str) -> dict:
    """Reads the text format as strictly as node_exporter does: HELP, TYPE, then the samples of that name,
    without timestamps; every line ends.
    """
    assert text.endswith("\n")
    found, lines = {}, iter(text.splitlines())
    for line in lines:
        if help := re.fullmatch(r"# HELP (\w+) [^\n]+", line):
            name = help[1]
            assert name not in found, "samples of one name stand together"
            found[name] = (re.fullmatch(rf"# TYPE {name} (gauge|counter)", next(lines))[1], {})
            continue
        labels = r'\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\}'
        sample = re.fullmatch(rf"{name}({labels}) (NaN|[-+0-9.e]+)", line)
        assert sample and sample[1] not in found[name][1], line
        found[name][1][sample[1]] = sample[2] if sample[2] == "NaN" else float(sample[2])
    return found


def test_prometheus_own_parser_reads_the_file(tmp_path):
    from prometheus_client import parser

    write_all(Prometheus(tmp_path / "metrics.prom", 'a "run"\\'), RECORD)
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families((tmp_path / "metrics.prom").read_text())
    }
    (loss,) = families["flava_ds_loss"].samples
    assert (
        loss.labels == {"run": 'a "run"\\', "objective": "mlm"}
        and loss.value == 2.5
        and families["flava_ds_loss"].type == "gauge"
    )
    (skipped,) = families["flava_ds_skipped_samples"].samples
    assert (
        skipped.labels["reason"] == "no image"
        and skipped.value == 2.0
        and families["flava_ds_skipped_samples"].type == "counter"
    )


def with_wandb(folder):
    config = config_in(folder)
    return dataclasses.replace(config, logging=dataclasses.replace(config.logging, wandb=True))


def test_wandb_without_a_login_is_one_clear_error(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'flava_ds[wandb]'")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        ConfigError,
        match="Weights & Biases rejects the run .*`wandb login`.* or leave logging.wandb off",
    ):
        WeightsAndBiases(with_wandb(tmp_path), {}, 0)
    wandb.teardown()  # it remembers in this process what its variables said


def leveldb_records(log: bytes) -> list[bytes]:
    """Reads LevelDB's log format, in which wandb keeps a run: blocks of 32 KiB, the first after a header of 7
    bytes; records of checksum, length, type.
    """
    found, part, place = [], b"", 0
    while place + 7 <= len(log):
        left = 32768 - (place + 7) % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        part += log[place + 7 : place + 7 + size]
        if kind in (1, 4):  # whole, or the last part
            found, part = [*found, part], b""
        place += 7 + size
    return found


def test_wandb_offline_keeps_the_numbers_and_a_resumed_run_its_identity(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'flava_ds[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = with_wandb(tmp_path)
    write_all(
        WeightsAndBiases(config, START, 0),
        {"step": 0, "kind": "pair", "loss/mlm": 2.5},
        {"step": 1, "loss/mlm": 2.25, "grad_norm": None},
    )
    time.sleep(1.1)  # wandb names folders by the second, and starts within one would share theirs
    write_all(WeightsAndBiases(config, START, 1), {"step": 1, "loss/mlm": 2.125})

    def read() -> tuple[list[tuple[int, float]], set[str]]:
        seen, names = [], set()
        for path in sorted(
            (config.run_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
        ):
            names.add(path.stem)
            for record in map(Record.FromString, leveldb_records(path.read_bytes()[7:])):
                if record.WhichOneof("record_type") == "history":
                    items = {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                    seen.append((items["step"], items["loss/mlm"]))
        return seen, names

    # wandb's own process may still write when `finish` has returned
    deadline = time.monotonic() + 60
    while len(read()[0]) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    seen, names = read()
    assert seen == [(0, 2.5), (1, 2.25), (1, 2.125)]
    assert len(names) == 1, "a resumed run goes on under the id of the first start"
