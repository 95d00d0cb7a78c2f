"""Rows, quantiles and the CSV file."""

import csv

import pytest
from flava_kernels.bench import plots, table
from flava_kernels.bench.machine import Machine
from flava_kernels.bench.measure import Measurement
from flava_kernels.bench.workload import Cost
from flava_kernels.bench.workloads import workloads

MACHINE = Machine("a processor", 2, "2.13", "3.9", "abc", copy_bandwidth=100.0, gemm_rate=1000.0)
COST = Cost(50, 200, 100, 1000)


def rows(found: Measurement | None, note: str = "", implementation: str = "") -> tuple[table.Row, table.Row]:
    return table.rows_of(
        workloads("layer_norm", "quick")[0],
        table.Subject("somebody", implementation, "fp32"),
        MACHINE,
        COST,
        found,
        1e-6,
        note,
    )


def test_shares_are_of_the_measured_rates_and_the_backward_rows_of_both_passes():
    forward, backward = rows(
        Measurement([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], forward_peak=2**20, peak=2**21, method="wall clock")
    )
    assert (forward.median_us, forward.share_of_copy, forward.share_of_gemm, forward.peak_mib) == (
        1e6,
        0.5,
        0.2,
        1.0,
    )
    assert (backward.median_us, backward.share_of_copy, backward.share_of_gemm, backward.peak_mib) == (
        2e6,
        0.5,
        pytest.approx(0.4),
        2.0,
    )


def test_the_hosts_time_stands_beside_a_gpus():
    times = {"host_forward": [3e-5, 2e-5, 4e-5], "host_backward": [5e-5]}
    forward, backward = rows(Measurement([1.0], [2.0], method="graph replay", **times))
    assert (forward.host_us, backward.host_us) == (pytest.approx(30), pytest.approx(50))
    assert "host 80 us" in table.line(forward, backward)
    on_a_cpu = rows(Measurement([1.0], [2.0], method="wall clock"))
    assert on_a_cpu[0].host_us is None and "host" not in table.line(*on_a_cpu)


def test_quantiles():
    assert table.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert table.quantiles([float(n) for n in range(11)]) == (5.0, 1.0, 9.0)


def test_rows_are_added_under_one_header(tmp_path):
    path = tmp_path / "bench.csv"
    measured = Measurement([1.0], [2.0], method="wall clock")
    table.append(path, list(rows(measured)))
    table.append(path, list(rows(None, "is not installed")))
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["direction"] for row in found] == ["forward", "backward"] * 2
    assert (
        found[0]["median_us"] == "1e+06"
        and found[0]["device"] == "a processor"
        and found[0]["commit"] == "abc"
    )
    assert (
        found[2]["median_us"] == "" and found[2]["note"] == "is not installed" and found[2]["rounds"] == "0"
    )


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "bench.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns a, b"):
        table.append(path, list(rows(None)))
    assert path.read_text() == "a,b\n1,2\n"


def test_lines_name_the_reason_where_there_are_no_numbers():
    assert table.line(*rows(None, "is not installed")).endswith("is not installed")
    assert "1000.00 ms" in table.line(*rows(Measurement([1.0], [2.0], method="wall clock")))


def test_rows_of_ours_name_the_implementation():
    forward, backward = rows(Measurement([1.0], [2.0], method="wall clock"), implementation="torch")
    assert forward.implementation == backward.implementation == "torch"
    assert "somebody (torch) " in table.line(forward, backward)


def test_one_picture_per_operator(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.write(
        tmp_path / "plots",
        [*rows(Measurement([1.0], [2.0], method="wall clock")), *rows(None, "is not installed")],
    )
    assert [path.name for path in drawn] == ["layer_norm.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
