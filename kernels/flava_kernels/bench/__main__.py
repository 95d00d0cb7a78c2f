"""python -m flava_kernels.bench [--op NAME ...] [--size gpu|cpu|quick] [--csv FILE] [--plots FOLDER]"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from flava_kernels import OPS, dispatch
from flava_kernels.bench import machine as machines
from flava_kernels.bench import plots, table
from flava_kernels.bench.measure import Arguments, Effort, Measurement, beyond, errors, exact, measure
from flava_kernels.bench.peers import OURS, Peer, UnavailableError, peers
from flava_kernels.bench.workload import Workload
from flava_kernels.bench.workloads import SIZES, workloads
from flava_kernels.op import Op

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INPUT_SETS = 3
EFFORT = {"gpu": Effort(1.0, 20, 200), "cpu": Effort(2.0, 1, 50, enough=8.0), "quick": Effort(0.05, 2, 3)}
LEFT_FREE = 2**31
"""Bytes that stay free besides what an implementation is known to need."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark. Returns an exit status."""
    options = parse(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    machine = machines.describe(device, dtype)
    print(
        f"{machine.device}, {machine.threads} threads, torch {machine.torch}, triton {machine.triton}, "
        f"commit {machine.commit}"
    )
    print(
        f"copy {machine.copy_bandwidth / 1e9:.0f} GB/s, {options.dtype} matrix products "
        f"{machine.gemm_rate / 1e12:.3g} TFLOP/s; forward, backward, peak of both"
    )
    rows: list[table.Row] = []
    done = table.measured(options.csv, machine.device, options.dtype, machine.commit)
    failed = []
    chosen = [(name, each) for name in options.op for each in workloads(name, options.size)]
    for name, workload in chosen:
        if options.resume and (name, workload.name) in done:
            print(f"{name}, {workload.name}: measured before")
            failed += complaints(name, workload.name, done[name, workload.name])
            continue
        print(f"{name}, {workload.name}", flush=True)
        try:
            found = run(OPS[name], workload, device, options.dtype, machine, EFFORT[options.size])
        except Exception:  # ours may not fail, but the next workload may run all the same
            traceback.print_exc()
            failed.append(f"{name}, {workload.name}")
            continue
        table.append(options.csv, found)
        failed += complaints(name, workload.name, next(row.note for row in found if row.peer == OURS))
        rows += found
    for path in plots.write(options.plots, rows) if options.plots else ():
        print(f"drawn: {path}")
    print(f"{len(rows)} rows added to {options.csv}" + "".join(f"; failed: {what}" for what in failed))
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line; sizes and dtypes default to the device's."""
    parser = argparse.ArgumentParser(
        prog="python -m flava_kernels.bench",
        description="Benchmarks every operator against the installed peers.",
    )
    parser.add_argument(
        "--op", nargs="+", choices=list(OPS), default=list(OPS), help="operators; default: all"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES, help="which shapes; default: the device's")
    parser.add_argument(
        "--quick", action="store_const", const="quick", dest="size", help="tiny shapes, to see if all runs"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument(
        "--csv",
        type=Path,
        default=clone if (clone := Path(__file__).parents[2] / "bench.csv").exists() else Path("bench.csv"),
        help="file to append rows to; default: %(default)s",
    )
    parser.add_argument(
        "--resume", action="store_true", help="leave out workloads that the file has from this commit"
    )
    parser.add_argument("--plots", type=Path, help="folder for one picture per operator")
    options = parser.parse_args(arguments)
    on_gpu = torch.device(options.device).type == "cuda"
    options.size = options.size or ("gpu" if on_gpu else "cpu")
    options.dtype = options.dtype or ("bf16" if on_gpu else "fp32")
    return options


def complaints(op: str, workload: str, note: str) -> list[str]:
    """Returns what failed: what the note on our rows says, which names errors beyond the limits."""
    return [f"{op}, {workload}: {note}"] if note else []


def run(
    op: Op, workload: Workload, device: torch.device, dtype: str, machine: machines.Machine, effort: Effort
) -> list[table.Row]:
    """Measures every implementation on one workload, printing a line for each."""
    rows: list[table.Row] = []
    cost = workload.cost(DTYPES[dtype].itemsize)
    sets = [draw(workload, device, DTYPES[dtype], seed) for seed in range(INPUT_SETS)]
    with played_ranks(workload.ranks):
        reference = exact(op.definition, sets[0]) if workload.exact else None
        for peer in peers(op.name):
            found, deviation, note = attempt(op, peer, workload, sets, reference, effort, device)
            implementation = (
                dispatch.implementation(device.type, op.supports(**sets[0].inputs))
                if peer.name == OURS
                else ""
            )
            rows += table.rows_of(
                workload,
                table.Subject(peer.name, implementation, dtype),
                machine,
                cost,
                found,
                deviation,
                note,
            )
            print(table.line(*rows[-2:]), flush=True)
            gc.collect()
    return rows


def attempt(
    op: Op,
    peer: Peer,
    workload: Workload,
    sets: list[Arguments],
    reference: list[torch.Tensor] | None,
    effort: Effort,
    device: torch.device,
) -> tuple[Measurement | None, float | None, str]:
    """Measures one implementation. Returns times, error, and a reason if there are none.

    Of ours, the last one says otherwise which errors are beyond the operator's limits.
    """
    needed, free = peer.bytes_needed(sets[0].inputs), machines.free_bytes(device)
    fitting = sets_that_fit(len(sets), needed, free, device)
    if fitting == 0:
        return None, None, f"needs about {needed / 2**30:.0f} GiB of memory; {free / 2**30:.0f} GiB are free"
    if peer.alone and workload.ranks > 1:
        return None, None, "does not support several ranks"
    try:
        call = peer.build(op, device.type)
        off = {} if reference is None else errors(call, sets[0], reference)
        effort = dataclasses.replace(effort, enough=float("inf")) if peer.compiles else effort
        found = measure(call, sets[:fitting], effort, device)
        found.method += "" if fitting == len(sets) else f", {fitting} of {len(sets)} input sets"
        note = beyond(off, op.limits, sets[0]) if peer.name == OURS else ""
        return found, max(off.values(), default=None), note
    except UnavailableError as reason:
        return None, None, str(reason)
    # a peer may reject shapes, dtypes and devices in any way; its message is the result
    except Exception as refused:
        if peer.name == OURS:
            raise
        text = str(refused).strip().splitlines() or [type(refused).__name__]
        return None, None, f"refuses: {type(refused).__name__}: {text[0][:160]}"


def sets_that_fit(number: int, needed: int, free: int, device: torch.device) -> int:
    """Returns for how many of the input sets there is memory.

    On a GPU each set has two graphs, which keep their memory, and what one of them reads; on a CPU one call
    runs at a time.
    """
    room = free - LEFT_FREE
    if device.type != "cuda" or needed == 0:
        return number if needed <= room else 0
    return min(number, max(int(2 * needed <= room), room // (3 * needed)))  # one at least if its graphs fit


def draw(workload: Workload, device: torch.device, dtype: torch.dtype, seed: int) -> Arguments:
    """Draws one set of inputs."""
    inputs = workload.draw(torch.Generator(device).manual_seed(seed), dtype)
    return Arguments(
        inputs | {name: inputs[name].requires_grad_() for name in workload.differentiable},
        workload.differentiable,
    )


@contextlib.contextmanager
def played_ranks(ranks: int) -> Iterator[None]:
    """Simulates rank 0 of several with torch's "fake" backend, which returns copies of this rank's data."""
    if ranks == 1:
        yield
        return
    store = importlib.import_module("torch.testing._internal.distributed.fake_pg").FakeStore()
    dist.init_process_group("fake", store=store, rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
