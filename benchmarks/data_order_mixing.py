"""How well a source's orders mix, and what reading them costs: shuffles, block shuffles, a buffer.

    python benchmarks/data_order_mixing.py [--out benchmarks/results/data_order_mixing.json] && make docs

A corpus of samples in shards of uneven size is represented by numbers only. For each order, the first epochs
are cut into global batches, and the pairs of samples within a batch are counted:

    same_shard   pairs from one shard, over what the full shuffle is expected to have: 1 is perfect
    near         pairs at most NEAR samples apart in the shards, over the same for the full shuffle
    again        pairs of a batch that meet in a batch of the next epoch, over what two independent full
                 shuffles are expected to have
    shards       shards that a batch draws from
    rank_correlation   Spearman's rho between position and place in the corpus, over an epoch: 0 is perfect
    lag_correlation    correlation of the places of neighbours in the order

and what reading costs with parts of PART samples and a least-recently-used cache for CACHE_SHARE of the
corpus:

    read_amplification_N parts fetched by N machines that share every global batch, times their size, over the
    corpus
    working_set          share of the corpus that is in use at once
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from flava_ds.data.order import Order

SAMPLES, SHARDS, BATCH, NEAR, PART, CACHE_SHARE = 1_000_000, 120, 4096, 100, 160, 0.35
BUFFER = 5000
BATCHES_LOOKED_AT = 60


def main() -> None:
    """Measures all orders and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "data_order_mixing.json"
    )
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    sizes = draw.multinomial(SAMPLES, draw.dirichlet(np.full(SHARDS, 40.0)))
    ends = np.cumsum(sizes)
    rows = [measure("full shuffle", *by_order(Order(seed=0, source=0, size=SAMPLES)), ends, 1.0)]
    for block, window in ((10_000, 16), (1000, 64), (1000, 256), (256, 256), (256, 1024), (64, 1024)):
        order = Order(seed=0, source=0, size=SAMPLES, block_size=block, window_blocks=window)
        rows.append(
            measure(
                f"blocks of {block}, windows of {window}",
                *by_order(order),
                ends,
                min(1.0, block * window / SAMPLES),
            )
        )
    buffered = [through_buffer(ends, np.random.default_rng(epoch)) for epoch in range(2)]
    rows.append(
        measure(
            f"shards shuffled, then a buffer of {BUFFER}",
            *buffered,
            None,
            ends,
            (BUFFER + SAMPLES / SHARDS) / SAMPLES,
        )
    )
    setting = {
        "samples": SAMPLES,
        "shards": SHARDS,
        "global_batch_size": BATCH,
        "near": NEAR,
        "part_samples": PART,
        "cache_share": CACHE_SHARE,
    }
    options.out.write_text(
        json.dumps({"setting": setting, "orders": rows}, indent=1) + "\n", encoding="utf-8"
    )


def by_order(order: Order) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns two epochs of an order and its cost in microseconds per sample."""
    started = time.perf_counter()
    first = order.at(0, np.arange(order.size))
    return first, order.at(1, np.arange(order.size)), 1e6 * (time.perf_counter() - started) / order.size / 2


def through_buffer(ends: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns shards in random order passed through a shuffle buffer of random replacement."""
    starts = np.concatenate([[0], ends[:-1]])
    stream = np.concatenate([np.arange(starts[shard], ends[shard]) for shard in draw.permutation(len(ends))])
    buffer, out, places = list(stream[:BUFFER]), [], draw.integers(0, BUFFER, len(stream))
    for place, sample in zip(places.tolist(), stream[BUFFER:].tolist(), strict=False):
        out.append(buffer[place])
        buffer[place] = sample
    return np.array(out + draw.permutation(buffer).tolist())


def measure(
    name: str,
    first: np.ndarray,
    second: np.ndarray,
    cost_us: float | None,
    ends: np.ndarray,
    working_set: float,
) -> dict:
    """Measures one order from two of its epochs."""
    shard_of = np.searchsorted(ends, np.arange(SAMPLES), side="right")
    shard_sizes = np.bincount(shard_of, minlength=SHARDS)
    batches = first[: len(first) // BATCH * BATCH].reshape(-1, BATCH)
    chosen = batches[np.linspace(0, len(batches) - 1, BATCHES_LOOKED_AT).astype(int)]
    pairs = BATCH * (BATCH - 1) / 2
    same = np.mean(
        [
            (
                np.bincount(shard_of[batch], minlength=SHARDS)
                * (np.bincount(shard_of[batch], minlength=SHARDS) - 1)
                / 2
            ).sum()
            for batch in chosen
        ]
    )
    expected_same = pairs * (shard_sizes * (shard_sizes - 1)).sum() / (SAMPLES * (SAMPLES - 1))
    near = np.mean([near_pairs(np.sort(batch)) for batch in chosen])
    batch_of = np.empty(SAMPLES, dtype=np.int64)
    batch_of[second] = np.arange(SAMPLES) // BATCH
    again = np.mean(
        [
            (counts * (counts - 1) / 2).sum()
            for batch in chosen
            if (counts := np.bincount(batch_of[batch])) is not None
        ]
    )
    row = {
        "order": name,
        "same_shard": same / expected_same,
        "near": near / (pairs * 2 * NEAR / SAMPLES),
        "again": again / (pairs * (BATCH - 1) / (SAMPLES - 1)),
        "shards": np.mean([len(np.unique(shard_of[batch])) for batch in chosen]),
        # both are permutations of ranks
        "rank_correlation": float(np.corrcoef(np.arange(len(first)), first)[0, 1]),
        "lag_correlation": float(np.corrcoef(first[:-1], first[1:])[0, 1]),
        "working_set": working_set,
        **{f"read_amplification_{machines}": amplification(first, machines) for machines in (1, 8)},
    }
    return row if cost_us is None else row | {"microseconds_per_sample": cost_us}


def near_pairs(ordered: np.ndarray) -> int:
    """Counts the pairs of a sorted batch that are at most NEAR apart."""
    return int((np.searchsorted(ordered, ordered + NEAR, side="right") - np.arange(len(ordered)) - 1).sum())


def amplification(order: np.ndarray, machines: int) -> float:
    """Returns what all machines fetch, relative to the corpus; the first machine is representative."""
    whole = order[: len(order) // BATCH * BATCH].reshape(-1, machines, BATCH // machines)[:, 0].ravel()
    cached: OrderedDict[int, None] = OrderedDict()
    fetched, most = 0, int(CACHE_SHARE * SAMPLES / PART)
    for part in (whole // PART).tolist():
        if part in cached:
            cached.move_to_end(part)
            continue
        fetched += 1
        cached[part] = None
        if len(cached) > most:
            cached.popitem(last=False)
    return machines * fetched * PART / SAMPLES


if __name__ == "__main__":
    main()
