"""Times the exchange of counts that every step begins with, against gloo's own all_gather.

    python benchmarks/gather_numbers.py [--processes 2 4 8 16 32] && make docs

Each process passes a row of ROW numbers, as a rank of flava_base does, and gets those of all. Both ways take
turns in the same processes, ROUNDS times; the median of rank 0 counts. They run with real-time priority where
that is allowed, as other work on the same cores would be waited for in every message. All processes are on
this machine, so with more of them than cores this shows the work of an exchange and not a network's latency,
which messages that follow each other add up as well: n - 1 around gloo's ring, ceil(log2(n)) here. Results go
to benchmarks/results/gather_numbers.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from flava_kernels.bench.machine import device_name
from scripts import parser_of

from flava_ds.ranks.distributed import World, gather_numbers, start, stop

RESULTS = Path(__file__).parent / "results" / "gather_numbers.json"
ROW, ROUNDS, CALLS = 11, 5, 400
"""Numbers of a row; how often each way has its turn; calls of a turn, over the number of processes."""


def main() -> None:
    """Measures every number of processes and writes the times."""
    parser = parser_of(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    rows = []
    for size in parser.parse_args().processes:
        with tempfile.TemporaryDirectory() as folder:
            processes.start_processes(measure, (size, folder), nprocs=size, start_method="spawn")
            rows.append({"processes": size} | json.loads((Path(folder) / "times.json").read_text()))
        print(rows[-1])
    found = {"machine": device_name(torch.device("cpu")), "cores": len(os.sched_getaffinity(0))}
    found |= {"torch": torch.__version__, "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(rank: int, size: int, folder: str) -> None:
    """Runs one process; the first writes its median microseconds of a call, and of its own CPU time in it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    world = start(600)
    numbers = [rank, *range(1, ROW)]
    expected = [[other, *range(1, ROW)] for other in range(size)]
    ways: dict[str, Callable[[World, list[int]], Any]] = {"gloo": by_gloo, "ours": gather_numbers}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):
        for name, gather in ways.items():
            assert gather(world, numbers) == expected
            calls, begun, used = max(10, CALLS // size), time.perf_counter(), time.process_time()
            for _ in range(calls):
                gather(world, numbers)
            times[name].append(((time.perf_counter() - begun) / calls, (time.process_time() - used) / calls))
    if rank == 0:
        medians = {
            name: [1e6 * statistics.median(column) for column in zip(*rows[1:], strict=True)]
            for name, rows in times.items()
        }
        (Path(folder) / "times.json").write_text(json.dumps(medians))
    stop()


def by_gloo(world: World, numbers: list[int]) -> list[list[int]]:
    """Returns every rank's numbers by one all_gather."""
    mine = torch.tensor(numbers)
    rows = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(rows, mine, group=world.host_group)
    return torch.stack(rows).tolist()


if __name__ == "__main__":
    main()
