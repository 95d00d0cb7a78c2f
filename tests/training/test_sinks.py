"""The files that records go to."""

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_metrics import config_in

from flava_ds.training.sinks import JsonLines, TensorBoard, open_sinks

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
    assert header["started"] == "then" and [(entry["step"], entry["started"]) for entry in header["resumed"]] == [(3, "now")]
    write_all(JsonLines(path, START, 0))
    assert len(lines_of(path)) == 1  # a fresh start begins a fresh log


def test_tensorboard_has_every_number_and_forgets_what_a_resumed_run_repeats(tmp_path):
    write_all(TensorBoard(tmp_path, 0), *({"step": step, "kind": "text", "loss/mlm": 9.0 - step, "grad_norm": None} for step in range(4)))
    write_all(TensorBoard(tmp_path, 2), {"step": 2, "loss/mlm": 5.0, "slowest_rank": 3})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss/mlm", "slowest_rank"}
    assert [(event.step, event.value) for event in events.Scalars("loss/mlm")] == [(0, 9.0), (1, 8.0), (2, 5.0)]


def test_every_start_of_a_run_is_noted(tmp_path):
    config = config_in(tmp_path)
    for step in (0, 40):
        for sink in open_sinks(config, START, step):
            sink.close()
    starts = json.loads((config.run_path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 40] and starts[0]["versions"] == {}
