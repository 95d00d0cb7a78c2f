"""Times of collectives on a cluster: latency by NCCL's tuner, bandwidth by topology and size.

    t = latency(algorithm, protocol) + payload * factor / busbw * (1 + (half / payload)^RAMP)

The latencies are the constants of NCCL's own tuner (src/graph/tuning.cc). NCCL takes bandwidth as constant
beyond them; measured busbw rises with size far more slowly, and more slowly on more ranks, which the last
factor describes. Its two constants are put through one half of the published rows;
benchmarks/plan_validation.py compares with the other half.
"""

from __future__ import annotations

import math

from flava_ds.scaling.hardware import Cluster

HALF_BYTES, HALF_RANKS, HALF_GROWTH, RAMP = 17 * 2**20, 8, 0.45, 0.75
"""At HALF_BYTES * (ranks / HALF_RANKS)^HALF_GROWTH bytes, a collective runs at half of its final rate."""

FACTOR = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "reduce": 1, "broadcast": 1}
"""How often (n - 1) / n of the payload crosses a link."""

BASE_US = {
    "ring": {"LL": 6.6, "LL128": 14.0, "Simple": 8.4},
    "tree": {"LL": 6.8, "LL128": 14.0, "Simple": 8.4},
}
HOP_US = {
    ("ring", "link"): {"LL": 0.6, "LL128": 1.9, "Simple": 3.4},
    ("ring", "net"): {"LL": 2.7, "LL128": 4.0, "Simple": 14.0},
    ("tree", "link"): {"LL": 0.6, "LL128": 1.25, "Simple": 4.0},
    ("tree", "net"): {"LL": 5.0, "LL128": 8.5, "Simple": 14.0},
}
NVLS_US, NVLS_TREE_NET_US = 25.0, 20.9
PROTOCOL = {"LL": 0.5, "LL128": 0.92, "Simple": 1.0}
"""Share of the bandwidth that a protocol can carry."""
TCP_HOP_US = 30.0
"""Of a message over TCP, in place of a hop of the tuner's."""


def seconds(collective: str, payload: float, cluster: Cluster, share: float = 1.0) -> float:
    """Returns the time of one collective over all ranks of a cluster.

    `payload` is the whole tensor that is reduced or gathered, in bytes; `share` scales the bandwidth.
    """
    if cluster.gpus == 1 or payload <= 0:
        return 0.0
    if cluster.gpu.rates is not None:
        return cluster.gpu.rates.collective(collective, payload)
    return min(
        latency + _transfer(collective, payload, cluster, bandwidth * share, protocol)
        for latency, bandwidth, protocol in _ways(collective, cluster)
    )


def _ways(collective: str, cluster: Cluster) -> list[tuple[float, float, float]]:
    """Returns (latency in s, busbw in bytes/s, protocol's share) of all that NCCL could take."""
    algorithms = ("ring", "tree") if collective == "all_reduce" else ("ring",)
    bandwidth = bus_bandwidth(cluster)
    ways = [
        (_latency(algorithm, protocol, collective, cluster), bandwidth, share)
        for algorithm in algorithms
        for protocol, share in PROTOCOL.items()
    ]
    gpu, net = cluster.gpu, 0.0
    if collective == "all_reduce" and gpu.multicast and cluster.per_node > 1:
        bandwidth = gpu.multicast
        if cluster.nodes > 1:
            bandwidth = min(bandwidth, cluster.network.node)
            net = math.ceil(math.log2(cluster.nodes)) * NVLS_TREE_NET_US
        ways.append(((NVLS_US + 2 * net) * 1e-6, bandwidth, 1.0))
    return ways


def _latency(algorithm: str, protocol: str, collective: str, cluster: Cluster) -> float:
    """Returns the sum of an algorithm's hops in s."""
    n, nodes = cluster.gpus, cluster.nodes
    if algorithm == "ring":
        steps = FACTOR[collective]
        net, link = (steps * nodes if nodes > 1 else 0), 0
        link = steps * (n - 1) - net if nodes > 1 else steps * (n - 1)
    else:
        link, net = 2 * (n // nodes - 1), 2 * math.ceil(math.log2(nodes))
    hop_net = TCP_HOP_US if cluster.network.tcp else HOP_US[algorithm, "net"][protocol]
    return (
        BASE_US[algorithm][protocol] + max(0, link) * HOP_US[algorithm, "link"][protocol] + net * hop_net
    ) * 1e-6


def bus_bandwidth(cluster: Cluster) -> float:
    """Returns the busbw that a ring reaches at large sizes, in bytes/s."""
    if cluster.nodes == 1:
        return cluster.gpu.link
    return min(cluster.gpu.link, cluster.network.node) if cluster.per_node > 1 else cluster.network.nic


def _transfer(collective: str, payload: float, cluster: Cluster, bandwidth: float, protocol: float) -> float:
    """Returns the time for the bytes alone."""
    half = HALF_BYTES * (cluster.gpus / HALF_RANKS) ** HALF_GROWTH
    moved = payload * FACTOR[collective] * (cluster.gpus - 1) / cluster.gpus
    return moved / bandwidth * (1 / protocol + (half / payload) ** RAMP)


def gather_of_counts(ranks: int, hop_us: float) -> float:
    """Returns the time of the host's gather of counts, whose number of hops grows with the logarithm of the
    ranks (ranks/distributed.py).
    """
    return math.ceil(math.log2(ranks)) * hop_us * 1e-6
