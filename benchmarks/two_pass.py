"""Memory and time of the exact contrastive loss's two passes, for docs/equality.md.

    python benchmarks/two_pass.py [--rounds 9] && make docs

A small FLAVA (width 192, 4 / 4 / 2 layers) on micro-batches of 32 synthetic pairs, 64 patches a picture,
captions as long as the demo's. Steps are forward and backward, without an optimizer.

    memory   a process per number of micro-batches and per way to have all negatives: two passes, or one graph
             over all samples at once. The peak of a process is taken over what it held before the step.
    time     two passes against one-pass accumulation, whose negatives are those of the micro-batch, over
             MICRO_BATCHES micro-batches: both in turn in one process of one thread, in seconds of its
             processor. The floor is arithmetic: one more forward pass of the clean encoders.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from flava_kernels.bench.machine import device_name
from scripts import in_new_process, parser_of

from flava_ds.batch import Batch
from flava_ds.config import UNCHANGED, CodebookConfig, Config, DataConfig, SourceConfig
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.demo.dataset import unpack
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.synthetic import batch_of

RESULTS = Path(__file__).parent / "results" / "two_pass.json"
BATCH, MICRO_BATCHES = 32, 4
CONTRASTIVE = "global_contrastive"
MEMORY = {"two passes": (1, 2, 4, 8, 16), "one graph": (1, 2, 4)}
"""Numbers of micro-batches by method."""
OBJECTIVES = {"all six": 1.0, "all six, a quarter of the pairs masked": 0.25, "contrastive alone": 0.0}
"""A step's objectives, as the share of each pair batch that goes through the masked passes."""


def main() -> int:
    """Measures all and writes the results, or (with --peak or --ratio) one thing and prints its JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison of time")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "MICRO_BATCHES"), help=argparse.SUPPRESS)
    parser.add_argument("--ratio", metavar="OBJECTIVES", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak(options.peak[0], int(options.peak[1]))))
    elif options.ratio:
        print(json.dumps(ratio(OBJECTIVES[options.ratio], options.rounds)))
    else:
        memory = [
            {"way": way, "micro_batches": n, **in_new_process(__file__, "--peak", way, str(n))}
            for way, numbers in MEMORY.items()
            for n in numbers
        ]
        times = [
            {"objectives": name, **in_new_process(__file__, "--ratio", name, "--rounds", str(options.rounds))}
            for name in OBJECTIVES
        ]
        about = {
            "machine": device_name(torch.device("cpu")),
            "torch": torch.__version__,
            "rounds": options.rounds,
            "micro_batches": MICRO_BATCHES,
        }
        RESULTS.write_text(
            json.dumps({**about, "batch": BATCH, "memory": memory, "time": times}, indent=1) + "\n",
            encoding="utf-8",
        )
    return 0


def settings(masked_share: float) -> Config:
    """Returns a small FLAVA's configuration with one source of pairs; the contrastive loss alone if nothing
    is masked.
    """
    shape = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    model = FlavaConfig(
        image=VisionEncoderConfig(image_size=64, patch_size=8, num_hidden_layers=4, **shape),
        text=FlavaTextConfig(num_hidden_layers=4, **shape),
        multimodal=MultimodalEncoderConfig(num_hidden_layers=2, **shape),
        projection_dim=192,
    )
    masking = {"num_masked_patches": 24, "min_patches_per_block": 4}
    six = flava_objectives(mim=MaskedImageConfig(**masking), mmm_image=MultimodalMaskedImageConfig(**masking))
    pairs = SourceConfig(
        kind="pair",
        shards=str(unpack() / "pairs-train"),
        image_codes_key="codes.npy",  # the batches then hold codes, and nothing computes them
        transform=UNCHANGED,
        masked_share=masked_share or 1.0,
    )
    return Config(
        name="two_pass",
        model=model,
        codebook=CodebookConfig(image_size=64),
        objectives=six if masked_share else {CONTRASTIVE: six[CONTRASTIVE]},
        data=DataConfig(sources={"pair": pairs}),
    )


def micro_batch(config: Config, times: int = 1) -> Batch:
    """Returns a micro-batch of pairs, or `times` copies of it as one batch."""
    pairs = config.data.sources["pair"]
    lengths = lengths_of(config, pairs.shards)["pair"]
    return batch_of(config.model.plan(config, pairs), "pair", lengths, BATCH, times)


def accumulate(task: FlavaTask, batches: list[Batch], *, exact: bool) -> None:
    """Accumulates a step's gradients like trainer and engine.

    `exact` in two passes, else with each micro-batch's own negatives.
    """
    counts = [task.counts(batch) for batch in batches]
    denominators = {
        name: torch.tensor(float(max(1, sum(count[name] for count in counts)))) for name in counts[0]
    }
    parts = [None] * len(batches)
    if exact and len(batches) > 1:
        with torch.no_grad():
            features = [task("features", batch)[CONTRASTIVE] for batch in batches]
        pulls = task.objectives[CONTRASTIVE].step_gradients(CONTRASTIVE, features)
        parts = [{CONTRASTIVE: part} for part in pulls]
    for batch, part in zip(batches, parts, strict=True):
        task("step", batch, denominators, part).loss.backward()


def peak(way: str, number: int) -> dict[str, float]:
    """Returns this process's peak memory growth during a step, and its batch and feature bytes, in MiB."""
    config = settings(1.0)
    task = build_task(config)
    whole = way == "one graph"
    batches = [micro_batch(config, number)] if whole else [micro_batch(config) for _ in range(number)]
    for parameter in task.parameters():
        parameter.grad = parameter.detach().clone().zero_()  # resident before the step
    before = resident_mib()
    accumulate(task, batches, exact=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return {
        "peak_mib": grown,
        "features_mib": 2 * number * BATCH * FlavaConfig.of(config).projection_dim * 4 / 2**20,
    }


def resident_mib() -> float:
    """Returns this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def ratio(masked_share: float, rounds: int) -> dict[str, Any]:
    """Returns the CPU time ratios of two passes to one, per round, and their theoretical floor."""
    config = settings(masked_share)
    task, batch = build_task(config), micro_batch(config)
    batches, found = [batch] * MICRO_BATCHES, []
    accumulate(task, batches, exact=True)
    for _ in range(rounds):
        seconds = []
        for exact in (True, False):
            begun = time.process_time()
            accumulate(task, batches, exact=exact)
            seconds.append(time.process_time() - begun)
        found.append(seconds)
    ratios = [exact / local for exact, local in found]
    forward = build_task(settings(0.0)).flops(batch) / 3
    return {
        "seconds": [statistics.median(column) for column in zip(*found, strict=True)],
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "floor": 1 + forward / task.flops(batch),
    }


if __name__ == "__main__":
    sys.exit(main())
