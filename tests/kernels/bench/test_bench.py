"""The command as a user runs it, and what becomes of implementations that cannot be measured."""

import csv
import dataclasses

import pytest
import torch
from flava_kernels import OPS
from flava_kernels.bench import __main__ as bench
from flava_kernels.bench import machine
from flava_kernels.bench.measure import Effort
from flava_kernels.bench.peers import Peer, UnavailableError, peers
from flava_kernels.bench.workloads import workloads

CPU = torch.device("cpu")


def attempt(peer: Peer, place: int = 0):
    workload = workloads("info_nce", "quick")[place]
    return bench.attempt(
        OPS["info_nce"],
        peer,
        workload,
        [bench.draw(workload, CPU, torch.float32, 0)],
        None,
        Effort(0.0, 1, 1),
        CPU,
    )


@pytest.mark.slow
def test_the_command_measures_every_peer_and_writes_rows_and_pictures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.csv"
    assert (
        bench.main(["--op", "info_nce", "--quick", "--csv", str(path), "--plots", str(tmp_path / "plots")])
        == 0
    )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    workload = workloads("info_nce", "quick")[0].name
    numbers = {
        row["peer"]: float(row["median_us"])
        for row in rows
        if row["workload"] == workload and row["direction"] == "backward" and row["median_us"]
    }
    assert {"flava_kernels", "torch eager", "open_clip's ClipLoss"} <= numbers.keys() and min(
        numbers.values()
    ) > 0
    assert all(row["note"] for row in rows if not row["median_us"])
    assert all(row["implementation"] == ("torch" if row["peer"] == "flava_kernels" else "") for row in rows)
    assert all(float(row["error"]) < 1e-5 for row in rows if row["error"])
    assert (tmp_path / "plots" / "info_nce.png").exists()
    assert "rows added to" in capsys.readouterr().out


def test_a_second_run_resumes_and_an_exception_of_ours_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAVA_COMMIT", "carried")
    monkeypatch.setattr(bench, "peers", lambda op: [peer for peer in peers(op) if peer.name == bench.OURS])
    path = tmp_path / "bench.csv"
    command = ["--op", "pack", "--quick", "--resume", "--csv", str(path)]
    pack, workload = OPS["pack"], workloads("pack", "quick")[0].name
    broken = dataclasses.replace(pack, function=lambda **inputs: 1 // 0)
    monkeypatch.setitem(bench.OPS, "pack", broken)
    assert bench.main(command) == 1 and not path.exists()
    assert f"0 rows added to {path}; failed: pack, {workload}" in capsys.readouterr().out
    monkeypatch.setitem(bench.OPS, "pack", pack)
    assert bench.main(command) == 0
    written = path.read_text()
    assert ",carried" in written and bench.main(command) == 0 and path.read_text() == written
    assert f"pack, {workload}: measured before" in capsys.readouterr().out


def test_an_error_beyond_the_operator_s_limits_fails_and_is_remembered(tmp_path, capsys, monkeypatch):
    """Of layer_norm's weight, which stays fp32, another one is allowed than of rows in bf16."""
    monkeypatch.setenv("FLAVA_COMMIT", "carried")
    monkeypatch.setattr(bench, "peers", lambda op: [peer for peer in peers(op) if peer.name == bench.OURS])
    norm, path = OPS["layer_norm"], tmp_path / "bench.csv"
    command = ["--op", "layer_norm", "--quick", "--dtype", "bf16", "--resume", "--csv", str(path)]

    def function(x, weight, bias, eps):
        return norm.function(x, weight * 1.001, bias, eps)

    monkeypatch.setitem(bench.OPS, "layer_norm", dataclasses.replace(norm, function=function))
    for _ in range(2):
        assert bench.main(command) == 1
        said = capsys.readouterr().out.splitlines()[-1]
        assert "; failed: layer_norm, 64x32: d weight is 1.0e-03 off, 1.0e-06 is allowed" in said
    with path.open(newline="") as file:
        notes = [row["note"] for row in csv.DictReader(file)]
    assert len(notes) == 2 and all(note.startswith("d weight is") for note in notes)
    monkeypatch.setitem(bench.OPS, "layer_norm", norm)
    path.unlink()
    assert bench.main(command) == 0


def test_reasons_instead_of_numbers():
    def missing(op, device):
        raise UnavailableError("lib cannot be imported")

    def failing(**inputs):
        raise NotImplementedError("odd shapes\nand more")

    assert attempt(Peer("missing", missing))[2] == "lib cannot be imported"
    assert (
        attempt(Peer("failing", lambda op, device: failing))[2] == "refuses: NotImplementedError: odd shapes"
    )
    assert attempt(Peer("alone", missing, alone=True), place=1)[2] == "does not support several ranks"
    found, error, note = attempt(Peer("huge", missing, lambda inputs: 2**60))
    assert found is None and error is None and note.startswith("needs about 1073741824 GiB of memory")


@pytest.mark.parametrize(
    ("device", "needed", "free", "sets"),
    [
        ("cpu", 0, 1, 0),
        ("cpu", 5, 8, 3),
        ("cpu", 7, 8, 0),
        ("cuda", 0, 8, 3),
        ("cuda", 1, 8, 2),
        ("cuda", 2, 8, 1),
        ("cuda", 4, 8, 0),
        ("cuda", 4, 10, 1),
        ("cuda", 20, 78, 1),
    ],
)
def test_memory_for_one_call_on_a_cpu_and_for_two_graphs_and_what_one_reads_a_set_on_a_gpu(
    device, needed, free, sets
):
    gib = 2**30
    assert bench.LEFT_FREE == 2 * gib
    assert bench.sets_that_fit(3, needed * gib, free * gib, torch.device(device)) == sets


def test_defaults_follow_the_device():
    options = bench.parse(["--device", "cpu"])
    assert (options.size, options.dtype, options.op, options.csv.name) == (
        "cpu",
        "fp32",
        list(OPS),
        "bench.csv",
    )
    options = bench.parse(["--device", "cuda"])
    assert (options.size, options.dtype) == ("gpu", "bf16")
    assert bench.parse(["--quick"]).size == "quick"


def test_the_machine_is_named_and_measured(monkeypatch):
    monkeypatch.setattr(machine, "MEASURED_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(machine, "MEASURED_EDGE", {"cpu": 32})
    generator = torch.get_rng_state()
    found = machine.describe(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), generator), "a run measures after it has restored its own"
    assert found.device and found.torch == torch.__version__ and found.threads == torch.get_num_threads()
    assert min(found.copy_bandwidth, found.gemm_rate) > 0
    assert machine.version_of("no such distribution") == "none"
    assert machine.free_bytes(CPU) > 2**20


@pytest.mark.gpu
def test_memory_that_torch_keeps_for_later_is_free():
    device = torch.device("cuda")
    before = machine.free_bytes(device)
    torch.empty(2**30, dtype=torch.int8, device=device)
    assert machine.free_bytes(device) > before - 2**28
