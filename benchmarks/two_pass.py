"""Memory and time of the exact contrastive loss's two passes, for docs/equality.md.

    python benchmarks/two_pass.py [--rounds 9] && make docs

Model and micro-batches (32 pairs with the demo's caption lengths) are those of step_vs_huggingface.py. Steps
are forward and backward, without an optimizer.

    memory   a process per number of micro-batches and per way to have all negatives: two passes, or one graph
             over all samples at once. The peak of a process is taken over what it held before the step.
    time     two passes against one-pass accumulation, whose negatives are those of the micro-batch, over
             MICRO_BATCHES micro-batches: both in turn in one process of one thread, in seconds of its
             processor. The floor is arithmetic: one more forward pass of the clean encoders.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "two_pass.json"
MICRO_BATCHES = 4
MEMORY = {"two passes": (1, 2, 4, 8, 16), "one graph": (1, 2, 4)}
"""Numbers of micro-batches by method."""
OBJECTIVES = {"all six": 1.0, "all six, a quarter of the pairs masked": 0.25, "contrastive alone": 0.0}
"""A step's objectives, as the share of each pair batch that goes through the masked passes."""


def main() -> int:
    """Measures all and writes the results, or (with --peak or --ratio) one thing and prints its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison of time")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "MICRO_BATCHES"), help=argparse.SUPPRESS)
    parser.add_argument("--ratio", metavar="OBJECTIVES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak(options.peak[0], int(options.peak[1]))))
    elif options.ratio:
        print(json.dumps(ratio(OBJECTIVES[options.ratio], options.rounds)))
    else:
        import torch
        from flava_kernels.bench.machine import device_name

        memory = [
            {"way": way, "micro_batches": n, **child("--peak", way, str(n))}
            for way, numbers in MEMORY.items()
            for n in numbers
        ]
        times = [
            {"objectives": name, **child("--ratio", name, "--rounds", str(options.rounds))}
            for name in OBJECTIVES
        ]
        about = {
            "machine": device_name(torch.device("cpu")),
            "torch": torch.__version__,
            "rounds": options.rounds,
            "micro_batches": MICRO_BATCHES,
        }
        RESULTS.write_text(
            json.dumps({**about, "batch": micro_batch(1.0).size, "memory": memory, "time": times}, indent=1)
            + "\n",
            encoding="utf-8",
        )
    return 0


def child(*arguments: str) -> dict:
    """Measures in a new process with one thread."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def settings(masked_share: float):
    """Returns the configuration, with only the contrastive loss if nothing is masked."""
    from step_vs_huggingface import configuration

    from flava_ds.config import ImageTextMatchingConfig, MaskedImageConfig, MaskedTextConfig, flava_objectives

    image, text = MaskedImageConfig(weight=0.0), MaskedTextConfig(weight=0.0)
    alone = flava_objectives(
        mim=image, mmm_image=image, mlm=text, mmm_text=text, itm=ImageTextMatchingConfig(weight=0.0)
    )
    return dataclasses.replace(configuration(), objectives=flava_objectives() if masked_share else alone)


def micro_batch(masked_share: float):
    """Returns a micro-batch of pairs, with the given share masked."""
    from step_vs_huggingface import batches

    whole = batches("demo")[0]
    if masked_share in (0.0, 1.0):
        return whole
    share = cut(whole, int(whole.size * masked_share))
    return dataclasses.replace(
        whole,
        masked=share,
        bool_masked_pos=None,
        image_codes=None,
        mim_rows=None,
        input_ids_masked=None,
        mlm_rows=None,
    )


def cut(batch, size: int):
    """Returns the first `size` samples."""
    tokens, patches = int(batch["cu_seqlens"][size]), size * batch["bool_masked_pos"].shape[1]
    kept = batch["mlm_rows"] < tokens
    return dataclasses.replace(
        batch,
        size=size,
        **{
            name: getattr(batch, name)[:size]
            for name in ("pixel_values", "bool_masked_pos", "image_codes", "itm_labels")
        },
        **{name: getattr(batch, name)[:tokens] for name in ("input_ids", "input_ids_masked")},
        cu_seqlens=batch["cu_seqlens"][: size + 1],
        mim_rows=batch["mim_rows"][batch["mim_rows"] < patches],
        mlm_rows=batch["mlm_rows"][kept],
        mlm_labels=batch["mlm_labels"][kept],
        matched_rows=batch["matched_rows"][batch["matched_rows"] < size],
    )


def repeated(batch, number: int):
    """Returns `number` copies of a fully masked batch as one batch."""
    import torch

    tokens, patches, places = (
        batch["input_ids"].shape[0],
        batch.size * batch["bool_masked_pos"].shape[1],
        range(number),
    )
    shifted = {"mlm_rows": tokens, "mim_rows": patches, "matched_rows": batch.size}
    plain = (
        "pixel_values",
        "bool_masked_pos",
        "image_codes",
        "input_ids",
        "input_ids_masked",
        "mlm_labels",
        "itm_labels",
    )
    ends = torch.cat([batch["cu_seqlens"][1:] + tokens * place for place in places])
    return dataclasses.replace(
        batch,
        size=number * batch.size,
        cu_seqlens=torch.cat([batch["cu_seqlens"][:1], ends]),
        **{name: torch.cat([getattr(batch, name)] * number) for name in plain},
        **{
            name: torch.cat([getattr(batch, name) + shift * place for place in places])
            for name, shift in shifted.items()
        },
    )


def accumulate(module, batches: list, *, exact: bool) -> None:
    """Accumulates a step's gradients like trainer and engine.

    `exact` in two passes, else with each micro-batch's own negatives.
    """
    import torch

    from flava_ds.objectives.global_contrastive import step_gradients

    counts = [module.counts(batch) for batch in batches]
    denominators = {
        name: torch.tensor(float(max(1, sum(count[name] for count in counts)))) for name in counts[0]
    }
    parts = [None] * len(batches)
    if exact and len(batches) > 1:
        with torch.no_grad():
            features = [module(batch, None) for batch in batches]
        parts = step_gradients(features)
    for batch, part in zip(batches, parts, strict=True):
        module("step", batch, denominators, part).loss.backward()


def peak(way: str, number: int) -> dict:
    """Returns this process's peak memory growth during a step, and its batch and feature bytes, in MiB."""
    from flava_ds.families.flava.task import build_task

    config = settings(1.0)
    module, one = build_task(config), micro_batch(1.0)
    batches = [repeated(one, number)] if way == "one graph" else [repeated(one, 1) for _ in range(number)]
    for parameter in module.parameters():
        parameter.grad = parameter.detach().clone().zero_()
    before = resident_mib()
    accumulate(module, batches, exact=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return {
        "peak_mib": grown,
        "features_mib": 2 * number * one.size * config.model.projection_dim * 4 / 2**20,
    }


def resident_mib() -> float:
    """Returns this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def ratio(masked_share: float, rounds: int) -> dict:
    """Returns the CPU time ratios of two passes to one, per round, and their theoretical floor."""
    from flava_ds.watching.flops import forward_flops, step_flops

    from flava_ds.families.flava.task import build_task

    config = settings(masked_share)
    module, batch = build_task(config), micro_batch(masked_share)
    batches, found = [batch] * MICRO_BATCHES, []
    accumulate(module, batches, exact=True)
    for _ in range(rounds):
        seconds = []
        for exact in (True, False):
            begun = time.process_time()
            accumulate(module, batches, exact=exact)
            seconds.append(time.process_time() - begun)
        found.append(seconds)
    ratios = [exact / local for exact, local in found]
    return {
        "seconds": [statistics.median(column) for column in zip(*found, strict=True)],
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "floor": 1 + forward_flops(settings(0.0), batch) / step_flops(config, batch),
    }


if __name__ == "__main__":
    sys.exit(main())
