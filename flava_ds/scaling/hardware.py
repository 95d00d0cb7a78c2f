"""GPUs and networks by name: vendors' peaks, and what was measured of them. No prices.

A machine whose rates were measured takes a GPU's place as it is (`this_machine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from flava_ds.errors import ConfigError, did_you_mean
from flava_ds.scaling.host_rates import HostRates

GIB = 2**30
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Gpu:
    """One accelerator. Source: vendors' data sheets; best_gemm: Bekman, Machine Learning Engineering."""

    name: str
    title: str
    flops: float
    """Dense peak of the tensor cores for 16-bit numbers, in FLOP/s; `at_precision` puts another there."""
    memory_gib: float
    memory_bandwidth: float
    """Peak in bytes/s."""
    fp32: float
    """Peak in FLOP/s of products that are fp32 to the last bit, as ours are: TF32 rounds their inputs."""
    tf32: float
    """Peak in FLOP/s of the tensor cores on fp32 numbers whose last 13 bits they ignore, as convolutions do
    unless torch is told otherwise; that of fp32 where they know no such numbers."""
    units: int
    """Streaming multiprocessors or compute units."""
    best_gemm: float
    """Share of the peak that the best shape reaches."""
    link: float
    """busbw of an all_reduce over one full node at large sizes, in bytes/s, as measured or published."""
    host_gib: float
    """Host memory of a usual machine for each GPU in it, in GiB. Source: AWS' p3dn, p4d, p4de, p5, p5e and
    p6-b200, Azure's ND MI300X v5, and the 120 GB of LPDDR5X beside each GH200 of JUPITER (a variant of the
    module has 480 GB)."""
    multicast: float = 0.0
    """The same with the switch adding up (NVLS), 0 without; all_reduce only."""
    bf16: bool = True
    """Whether the tensor cores know bf16 besides fp16."""
    rates: HostRates | None = None
    """Measured rates of a core that is a rank's device, in place of all the others."""


# fmt: off
GPUS = {
    gpu.name: gpu
    for gpu in (
        # name, title, FLOP/s (16 bits), GiB, bytes/s, FLOP/s (fp32, TF32), units, GEMM, link, host GiB, NVLS
        Gpu("v100", "NVIDIA V100 SXM 32 GB", 125e12, 32, 0.9e12, 15.7e12, 15.7e12, 80, 0.80, 130e9, 96,
            bf16=False),
        Gpu("a100-40", "NVIDIA A100 SXM 40 GB", 312e12, 40, 1.555e12, 19.5e12, 156e12, 108, 0.87, 232e9, 144),
        Gpu("a100", "NVIDIA A100 SXM 80 GB", 312e12, 80, 2.0e12, 19.5e12, 156e12, 108, 0.87, 232e9, 144),
        Gpu("h100", "NVIDIA H100 SXM 80 GB", 989e12, 80, 3.35e12, 67e12, 494e12, 132, 0.80, 370e9, 256,
            480e9),
        Gpu("h200", "NVIDIA H200 SXM 141 GB", 989e12, 141, 4.8e12, 67e12, 494e12, 132, 0.80, 370e9, 256,
            480e9),
        Gpu("b200", "NVIDIA B200 180 GB", 2250e12, 180, 8.0e12, 75e12, 1125e12, 148, 0.78, 700e9, 256, 850e9),
        Gpu("gh200", "NVIDIA GH200 96 GB", 989e12, 96, 4.0e12, 67e12, 494e12, 132, 0.80, 376e9, 111),
        Gpu("mi300x", "AMD MI300X 192 GB", 1307e12, 192, 5.3e12, 163.4e12, 653e12, 304, 0.51, 313e9, 231),
    )
}
# fmt: on


def like_device(name: str, memory_gib: float) -> Gpu | None:
    """Returns the GPU that CUDA calls `name`, or None if it is not listed, or a part of one (MIG)."""
    words = set(name.lower().replace("-", " ").split())
    if "mig" in words:  # it has the name of the whole, and a share of its rates
        return None
    found = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in words]
    return min(found, key=lambda gpu: abs(gpu.memory_gib - memory_gib), default=None)


USABLE = 0.99
"""Share of a card's nominal memory that a process sees, before its own context."""


@dataclass(frozen=True)
class Network:
    """What connects nodes of eight GPUs."""

    name: str
    title: str
    nics: int
    """Adapters of a node."""
    nic: float
    """Bytes/s of one, as collectives reach it."""
    tcp: bool = False

    @property
    def node(self) -> float:
        """Bytes/s that leave a node."""
        return self.nics * self.nic


NETWORKS = {
    network.name: network
    for network in (
        Network("ib-400x8", "8 x 400 Gb/s InfiniBand", 8, 48e9),
        Network("efa-400x8", "8 x 400 Gb/s EFA", 8, 47.75e9),
        Network("ib-200x8", "8 x 200 Gb/s InfiniBand", 8, 24e9),
        Network("ib-200x4", "4 x 200 Gb/s InfiniBand", 4, 24e9),
        Network("ib-400x1", "one 400 Gb/s InfiniBand adapter", 1, 48e9),
        Network("ib-200x1", "one 200 Gb/s InfiniBand adapter", 1, 24e9),
        Network("ethernet-100", "one 100 Gb/s Ethernet adapter, TCP", 1, 10e9, tcp=True),
        Network("ethernet-25", "one 25 Gb/s Ethernet adapter, TCP", 1, 2.5e9, tcp=True),
    )
}
"""Rates are plateaus of nccl-tests: 24 and 48 GB/s for a 200 or 400 Gb/s adapter, 10 over TCP and 100 GbE."""

DEFAULT_NETWORK = "ib-400x8"
MOST_PER_NODE = 8
"""GPUs of a machine at most, as the rates of links and networks above are those of such machines."""


def find(what: str, name: str, known: Mapping[str, Thing]) -> Thing:
    """Returns a thing by name. Raises: ConfigError listing all, with the nearest name."""
    chosen = name.lower()
    if chosen not in known:
        raise ConfigError(
            f"--{what} '{name}' is unknown{did_you_mean(chosen, known)}; there is {', '.join(sorted(known))}"
        )
    return known[chosen]


@dataclass(frozen=True)
class Cluster:
    """GPUs, how many stand in a node, and what connects the nodes."""

    gpu: Gpu
    network: Network
    gpus: int
    nodes: int

    @property
    def per_node(self) -> int:
        """GPUs of a node."""
        return self.gpus // self.nodes


def cluster(gpu: str, gpus: int | None, nodes: int | None, network: str | None) -> Cluster:
    """Returns a cluster by names; without a number of GPUs, machines are full.

    Raises: ConfigError for unknown names and counts that do not divide.
    """
    card, net = find("gpu", gpu, GPUS), find("network", network or DEFAULT_NETWORK, NETWORKS)
    for option, count in (("--nodes", nodes), ("--gpus", gpus)):
        if count is not None and count < 1:
            raise ConfigError(f"{option} {count}: use at least 1")
    if gpus is None:
        gpus = MOST_PER_NODE * (nodes or 1)
    if nodes is None:  # as few machines of eight as hold them, equally full
        nodes = next(count for count in range(-(-gpus // MOST_PER_NODE), gpus + 1) if gpus % count == 0)
    if gpus % nodes:
        raise ConfigError(f"--gpus {gpus} do not divide by --nodes {nodes}; use a multiple")
    if gpus // nodes > MOST_PER_NODE:
        raise ConfigError(
            f"--gpus {gpus} on --nodes {nodes}: a machine has {MOST_PER_NODE} GPUs at most; use more nodes, "
            "or leave --nodes out"
        )
    return Cluster(card, net, gpus, nodes)


def at_precision(machines: Cluster, precision: str) -> Cluster:
    """Returns the cluster with the peak that products of a precision have there; measured rates stay.

    Raises: ConfigError for bf16 on GPUs that have no tensor cores for it.
    """
    gpu = machines.gpu
    if gpu.rates is not None or precision == "fp16":
        return machines
    if precision == "fp32":
        return replace(machines, gpu=replace(gpu, flops=gpu.fp32))
    if not gpu.bf16:
        raise ConfigError(
            f"GPU {gpu.name} has no tensor cores for training.precision {precision}; add "
            "--training.precision fp16"
        )
    return machines


def this_machine(rates: HostRates, ranks: int, memory_gib: float) -> Cluster:
    """Returns a machine each of whose ranks has one core, with the rates that were measured of it."""
    best = 1 / min(rate.per_flop for rate in rates.operators.values() if rate.per_flop)
    size, seconds = rates.collectives["all_reduce"][-1]
    core = Gpu("cpu", "a core of this machine", best, memory_gib, 1 / rates.others.per_byte, best, best, 1,
               1.0, size / seconds, memory_gib, rates=rates)  # fmt: skip
    return Cluster(core, Network("loopback", "gloo over loopback", 1, size / seconds, tcp=True), ranks, 1)
