"""Logs of whole, resumed and interrupted runs."""

import json

from flava_ds.watching.run_log import logged_losses, read_log


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_log(path)


def test_header_and_steps_are_told_apart(tmp_path):
    log = write(
        tmp_path / "log.jsonl",
        {"versions": {"torch": "2"}, "step": "none"},
        {"step": 1, "loss/mim": 6.0, "lr": 0.1},
        {"step": 3, "loss/mlm": 8.0},
    )
    assert log.header["versions"] == {"torch": "2"}
    assert [line["step"] for line in log.steps] == [1, 3]
    assert log.names("loss/") == ["mim", "mlm"] and log.series("loss/mim") == ([1], [6.0])


def test_a_resumed_run_counts_a_repeated_step_once_and_last(tmp_path):
    log = write(
        tmp_path / "log.jsonl",
        {"versions": {}},
        {"step": 5, "lr": 1.0},
        {"step": 6, "lr": 1.0},
        {"versions": {"b": 1}},
        {"step": 6, "lr": 2.0},
    )
    assert log.series("lr") == ([5, 6], [1.0, 2.0])


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path):
    assert write(tmp_path / "log.jsonl", {"versions": {}}, {"step": 1, "lr": 1.0}, '{"step": 2, "lr"').series(
        "lr"
    ) == ([1], [1.0])


def test_numbers_that_are_not_finite_are_no_points(tmp_path):
    log = write(
        tmp_path / "log.jsonl",
        '{"step": 1, "loss/mim": NaN}',
        '{"step": 2, "loss/mim": 3.0}',
        '{"step": 3, "loss/mim": Infinity}',
    )
    assert log.series("loss/mim") == ([2], [3.0])
    assert logged_losses(log) == {}, "3.0 is not what the run came to"
    assert log.not_finite_from("loss/mim") == 3 and log.not_finite_from("loss/mlm") is None


def test_a_number_that_is_finite_again_is_finite_at_the_end(tmp_path):
    log = write(
        tmp_path / "log.jsonl",
        {"step": 1, "loss/mim": 4.0, "loss/mlm": None},
        {"step": 2, "loss/mim": None, "loss/mlm": None},
        {"step": 3, "loss/mim": 3.0},
        {"step": 4, "lr": 1.0},
    )
    assert log.not_finite_from("loss/mim") is None and log.not_finite_from("loss/mlm") == 1
    assert logged_losses(log) == {"mim": {"first": 4.0, "last": 3.0}}


def test_the_names_of_the_numbers_are_held_once(tmp_path):
    """They took more memory than the numbers."""
    log = write(tmp_path / "log.jsonl", *({"step": step, "loss/mim": 1.0} for step in range(3)))
    assert len({id(key) for line in log.steps for key in line}) == 2


def test_a_missing_log_is_empty(tmp_path):
    assert read_log(tmp_path / "log.jsonl").steps == []
