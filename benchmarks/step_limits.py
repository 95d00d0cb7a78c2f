"""How much faster a CPU step could become: times it beside its own matrix products, one by one.

    python benchmarks/step_limits.py [--rounds 5] && make docs

FLAVA's steps of step_vs_huggingface.py. Every product of a step (forward and backward) is recorded with its
sizes and strides, and then made alone, on tensors of these sizes. Their sum is the least that the step can
take while it makes these products by torch: what is around them would be free. Hugging Face's time over that
is the most that its time over ours could be, and likewise for bf16 over fp32. Rounds alternate between all of
these; the table has medians. Writes benchmarks/results/step_limits.json, where what other machines measured
stays.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts import parser_of, read_results
from step_vs_huggingface import batches, flava, our_step, run_process, versions

RESULT = Path(__file__).parent / "results" / "step_limits.json"
REPEATS, EDGE = 3, 1024
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Operators of torch that are a product, and which of their arguments are its factors."""
Product = tuple[str, tuple[tuple[tuple[int, ...], tuple[int, ...], str], ...]]
"""An operator, and sizes, strides and type of each of its arguments that is a tensor."""


def main() -> None:
    """Runs all measurements."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import torch
    from flava_kernels.bench.machine import gemm_rate

    from flava_ds.allocator import keep_freed_memory

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    about = versions() | {"threads": options.threads, "rounds": options.rounds}
    before = read_results(RESULT, {"rows": []})["rows"]
    rows = [row for row in before if row["machine"] != about["machine"]]
    for lengths in ("full", "demo"):
        measured = {name: Steps(lengths, getattr(torch, name)) for name in ("float32", "bfloat16")}
        rounds: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            theirs = run_process("flava", lengths, "huggingface", options.threads)["seconds"]
            own: dict[str, Any] = {"huggingface": sum(theirs.values())}
            for name, steps in measured.items():
                rate = gemm_rate(torch.device("cpu"), steps.dtype, EDGE)
                own[name] = {"step": steps.seconds(), "products": steps.alone(), "gemm_rate": rate}
            rounds.append(own)
            print(json.dumps(own), flush=True)
        rows += [about | summary(lengths, name, steps, rounds) for name, steps in measured.items()]
    RESULT.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


class Steps:
    """A step of each kind in one precision, and its products."""

    def __init__(self, lengths: str, dtype: Any) -> None:
        config = flava()
        self.dtype, step = dtype, our_step(config.model.build(config).train().to(dtype))
        self.runs = [step(batch) for batch in batches(config, "flava", lengths)]
        self.products = sum((products_of(run) for run in self.runs), Counter[Product]())
        self.flops = sum(count * flops_of(product) for product, count in self.products.items())

    def seconds(self) -> float:
        """Returns the time of one step of each kind."""
        return sum(fastest(run) for run in self.runs)

    def alone(self) -> float:
        """Returns the time of all products of these steps, one after the other."""
        return sum(count * fastest(replay(product)) for product, count in self.products.items())


def products_of(run: Callable[[], Any]) -> Counter[Product]:
    """Returns the products of a run, and how many there are of each."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[Product] = Counter()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__.removesuffix("_")
            if name in PRODUCTS:
                tensors = (own for own in args if isinstance(own, torch.Tensor))
                shapes = ((tuple(own.shape), own.stride(), str(own.dtype)) for own in tensors)
                found[name, tuple(shapes)] += 1
            elif any(word in name for word in ("attention", "linear", "matmul", "conv", "einsum")):
                raise AssertionError(f"{name} makes products too, and is not counted")
            return func(*args, **(kwargs or {}))

    with Recorder():
        run()
    return found


def flops_of(product: Product) -> float:
    """Returns the FLOPs of a product."""
    name, shapes = product
    left, right = (shapes[place][0] for place in PRODUCTS[name])
    batch = left[0] if len(left) == 3 else 1
    return 2.0 * batch * left[-2] * left[-1] * right[-1]


def replay(product: Product) -> Callable[[], Any]:
    """Returns a call that makes a product of random numbers."""
    import torch

    name, shapes = product
    made = []
    for size, stride, dtype in shapes:
        own = torch.empty_strided(size, stride, dtype=getattr(torch, dtype.removeprefix("torch.")))
        made.append(own.normal_() if 0 not in stride else torch.randn(size, dtype=own.dtype))
    return lambda: getattr(torch, name)(*made)


def fastest(run: Callable[[], Any]) -> float:
    """Returns the seconds of the fastest of REPEATS runs after a first one."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def summary(lengths: str, name: str, steps: Steps, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns medians over rounds; ratios are computed within a round."""

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(of, rounds))

    return {
        "lengths": lengths,
        "precision": name,
        "step_seconds": median(lambda own: own[name]["step"]),
        "products_seconds": median(lambda own: own[name]["products"]),
        "products_share": median(lambda own: own[name]["products"] / own[name]["step"]),
        "share_of_gemm_rate": median(lambda own: steps.flops / own[name]["step"] / own[name]["gemm_rate"]),
        "huggingface_over_step": median(lambda own: own["huggingface"] / own[name]["step"]),
        "huggingface_over_products": median(lambda own: own["huggingface"] / own[name]["products"]),
        "fp32_over_step": median(lambda own: own["float32"]["step"] / own[name]["step"]),
        "fp32_over_products": median(lambda own: own["float32"]["step"] / own[name]["products"]),
    }


if __name__ == "__main__":
    main()
