"""Measures a source of many shards: how long a rank waits for its table of samples, and what the table takes.

    python benchmarks/many_shards.py [--shards 4096] [--samples 10000] [--folder DIR] && make docs

Makes shards as large as img2dataset's that hold nothing (sparse files; at the default some 6 GB of disk,
indexes and table), with an index of pairs each, in a temporary folder of DIR. In processes of their own:

- a rank that holds its own table, as one of few shards is held;
- the first start, which stores the table for all ranks of a machine;
- a rank that maps the stored table.

"Own memory" is anonymous memory, which every rank has for itself; a mapped file is in memory once. A look-up
is a sample's key and the places of its members, at random. Results go to benchmarks/results/many_shards.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from flava_kernels.bench.machine import device_name
from scripts import in_new_process, parser_of

from flava_ds.storage import sample_table
from flava_ds.storage.files import CACHE_VARIABLE, stamp_of
from flava_ds.storage.index_files import _encode, index_files
from flava_ds.storage.shard_index import ShardIndex
from flava_ds.storage.shards import list_shards

RESULTS = Path(__file__).parent / "results" / "many_shards.json"
SUFFIXES = ("jpg", "txt", "json")
BYTES = ((8_000, 60_000), (20, 200), (300, 900))
"""Least and most of each member."""
FIELDS = {"image": ("jpg",), "caption": ("txt",)}
REQUIRED = {"image": "no image", "caption": "missing caption"}
WAYS = ("held", "first start", "mapped")
LOOK_UPS = 100_000


def main() -> None:
    """Makes the shards, measures every way and writes the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--shards", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=10_000, help="of each shard")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(options.shards):
            make_shard(Path(folder) / f"{number:05d}.tar", number, options.samples)
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")
        found = {way: in_new_process(__file__, "--way", way, "--folder", folder) for way in WAYS}
    found = {
        "machine": device_name(torch.device("cpu")),
        "shards": options.shards,
        "samples": options.shards * options.samples,
        "ways": found,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def make_shard(path: Path, number: int, samples: int) -> None:
    """Writes a shard without bytes and the index of one with them."""
    random = np.random.default_rng(number)
    sizes = np.stack([random.integers(*limits, samples) for limits in BYTES], axis=1).reshape(-1)
    ends = np.cumsum(512 + (sizes + 511) // 512 * 512)
    with path.open("wb") as file:
        file.truncate(int(ends[-1]) + 10240)
    keys = [f"{number:05d}{sample:04d}".encode() for sample in range(samples)]
    found = ShardIndex(
        keys=np.frombuffer(b"".join(keys), np.uint8),
        key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
        member_sample=np.repeat(np.arange(samples, dtype=np.int32), len(SUFFIXES)),
        member_suffix=np.tile(np.arange(len(SUFFIXES), dtype=np.int32), samples),
        member_offset=ends - (sizes + 511) // 512 * 512,
        member_size=sizes,
        suffixes=SUFFIXES,
        faults={},
        stamp=stamp_of(path),
    )
    index_files(path)[0].write_bytes(_encode(found))


def measure(way: str, folder: Path) -> dict[str, float]:
    """Returns seconds until the table is there, MiB of own memory for it, and microseconds of a look-up."""
    shards = list_shards(str(folder))
    before, start = own_mib(), time.perf_counter()
    if way == "first start":
        sample_table.STORED_FROM = 0
        sample_table.prepare_table(shards, FIELDS, REQUIRED)
    else:
        sample_table.STORED_FROM = sys.maxsize if way == "held" else 0
    table = sample_table.SampleTable(shards, FIELDS, REQUIRED)
    seconds, random = time.perf_counter() - start, np.random.default_rng(0)
    numbers = random.integers(0, len(table), LOOK_UPS).tolist()
    start = time.perf_counter()
    for number in numbers:
        assert int(table.key(number)) // 10_000 == table.shard_of(number)
        for offsets, sizes in table.columns.values():
            assert offsets[number] >= 0 and sizes[number]
    looked = (time.perf_counter() - start) / LOOK_UPS * 1e6
    return {"seconds": seconds, "own_mib": own_mib() - before, "look_up_us": looked}


def own_mib() -> float:
    """Returns the MiB that this process does not share with others that map the same files."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


if __name__ == "__main__":
    main()
