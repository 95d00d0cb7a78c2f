"""Times forward + backward of training steps against the same models of transformers, side by side.

    python benchmarks/step_vs_huggingface.py [--rounds 5] [--models flava clip bert ...] && make docs

FLAVA takes steps of pairs, images and texts. Its shape is small enough for two CPU cores: width 192, 3 heads,
MLP 768, 4/4/2 layers, 64 px / patch 8, vocabulary 30,522, codebook 8,192, batch 32, fp32. Two lengths of
text:

    full   every caption fills its 77 tokens: equal work on both sides
    demo   caption lengths of the demo's training pairs and glosses; transformers pads to 77 as published
           pipelines do, and, as a second peer, only to the longest of the batch

The other families take steps of their demo's recipe with the demo's lengths, without dropout. Where
transformers' class lacks an objective, ours leaves it out too. Theirs pads to the longest text of the batch.

Our trainer makes the C library keep freed memory on a CPU (flava_ds/allocator.py), so our side does here. Of
FLAVA theirs runs unmodified, and once more with the same setting; of the others with it.

Each measurement runs in its own process, so that peak memory is its own; processes alternate, so that drift
of the machine affects all alike. Models have the same weights, and their losses must agree to a thousandth.
Writes benchmarks/results/step_vs_huggingface.json, where models that are not measured stay, and what other
machines measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts import in_new_process, parser_of, read_results

RESULT = Path(__file__).parent / "results" / "step_vs_huggingface.json"
BATCH, FULL, STEPS = 32, 77, 3
KEEPING = ("flava_ds", "huggingface-keeping", "huggingface-longest-keeping")
"""Implementations whose process keeps freed memory."""
PEERS = {
    ("flava", "full"): ("flava_ds", "huggingface", "huggingface-keeping"),
    ("flava", "demo"): ("flava_ds", "huggingface", "huggingface-keeping", "huggingface-longest"),
    **{(name, "demo"): ("flava_ds", "huggingface-longest-keeping")
       for name in ("clip", "bert", "vilt", "align", "visualbert", "lxmert")},
}  # fmt: skip
"""(model, lengths of texts) -> implementations."""


def main() -> None:
    """Runs all measurements, or (with --measure) a single one and prints its JSON."""
    parser = parser_of(__doc__)
    models = list(dict.fromkeys(model for model, _ in PEERS))
    parser.add_argument("--rounds", type=int, default=5, help="processes per implementation and length")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=models, default=models, help="default: all")
    parser.add_argument("--measure", nargs=3, metavar=("MODEL", "LENGTHS", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.threads)))
        return
    before = read_results(RESULT, {"rows": []})["rows"]
    about = {"rounds": options.rounds, "threads": options.threads} | versions()
    rows = [row for row in before if row["model"] not in options.models or row["machine"] != about["machine"]]
    for (model, lengths), implementations in PEERS.items():
        if model not in options.models:
            continue
        runs: dict[str, list[dict]] = {name: [] for name in implementations}
        for _ in range(options.rounds):
            for name in implementations:
                runs[name].append(run_process(model, lengths, name, options.threads))
        agree(model, {name: own[0]["losses"] for name, own in runs.items()})
        for name, own in runs.items():
            rows.append(about | summarize(model, lengths, name, own, runs["flava_ds"]))
            print(json.dumps(rows[-1]), flush=True)
    RESULT.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


def run_process(model: str, lengths: str, implementation: str, threads: int) -> dict:
    """Measures in a new process."""
    words = ["--measure", model, lengths, implementation, "--threads", str(threads)]
    return in_new_process(__file__, *words, threads=threads)


def agree(model: str, losses: dict[str, dict[str, float]]) -> None:
    """Raises AssertionError if the implementations do not compute the same losses."""
    for name, own in losses.items():
        for kind, loss in own.items():
            expected = losses["flava_ds"][kind]
            assert abs(loss - expected) <= 1e-3 * abs(expected), (model, name, kind, loss, expected)


def measure(model: str, lengths: str, implementation: str, threads: int) -> dict:
    """Returns seconds per step kind (best of STEPS after a warm-up), losses, and the process's peak memory in
    MiB.
    """
    import torch

    from flava_ds.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    if implementation in KEEPING:
        keep_freed_memory()
    config = configuration(model)
    task = config.model.build(config).train()
    seconds, losses = {}, {}
    step = our_step(task) if implementation == "flava_ds" else their_step(config, task, implementation)
    for batch in batches(config, model, lengths):
        run = step(batch)
        losses[str(batch.kind)], times = run(), []
        for _ in range(STEPS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds[str(batch.kind)] = min(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "losses": losses, "peak_mib": peak}


def configuration(model: str) -> Any:
    """Returns the peers' common configuration, with the objectives that both have."""
    from flava_ds.recipes import RECIPES

    if model == "flava":
        return flava()
    config = RECIPES[f"demo_{model}"]()
    objectives = dict(config.objectives)
    if model == "vilt":  # transformers has no class with MLM and matching
        masked = dataclasses.replace(objectives["mmm_text"], tied_decoder=True)
        objectives = {"mmm_text": masked}
    if model == "align":  # transformers averages both directions, without smoothing
        contrast = dataclasses.replace(objectives["global_contrastive"], weight=1.0, label_smoothing=0.0)
        objectives = {"global_contrastive": contrast}
        image = dataclasses.replace(config.model.image, norm_group=BATCH, drop_path=0.0)  # as theirs
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    return dataclasses.replace(config, objectives=objectives)


def flava() -> Any:
    """Returns a small FLAVA on pairs, images and texts."""
    from flava_ds.config import CodebookConfig, Config, SourceConfig
    from flava_ds.config.encoders import VisionEncoderConfig
    from flava_ds.families.flava.config import (
        FlavaConfig,
        FlavaTextConfig,
        MultimodalEncoderConfig,
    )
    from flava_ds.recipes.demo import DATA, demo

    shape = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    model = FlavaConfig(
        image=VisionEncoderConfig(image_size=64, patch_size=8, num_hidden_layers=4, **shape),
        text=FlavaTextConfig(num_hidden_layers=4, **shape),
        multimodal=MultimodalEncoderConfig(num_hidden_layers=2, **shape),
        projection_dim=192,
    )
    folders = {"pair": "pairs-train", "image": "images", "text": "text"}
    sources = {
        kind: SourceConfig(kind=kind, seed=number, shards=str(DATA / folder), max_tokens=FULL)
        for number, (kind, folder) in enumerate(folders.items())
    }
    base = Config(name="benchmark", model=model, codebook=CodebookConfig(image_size=64))
    return dataclasses.replace(base.with_sources(sources), objectives=demo().objectives)


def batches(config: Any, model: str, lengths: str) -> list:
    """Returns a batch of each source: random words and codes, blank pictures, masks of the family's plan."""
    import torch

    from flava_ds.demo.dataset import unpack
    from flava_ds.scaling.captions import Lengths, full, read_shards
    from flava_ds.scaling.synthetic import batch_of

    root, draw, made = unpack(), torch.Generator().manual_seed(0), []
    for name, source in config.data.sources.items():
        plan, histogram = config.model.plan(config, source), None
        if plan.tokenizer is not None:
            folder = Path(source.shards).name.replace("scenes-train", "pairs-train")
            histogram = full(FULL) if lengths == "full" else read_shards(config, name, str(root / folder))
            if model == "visualbert":  # two captions, with one [CLS]
                histogram = Lengths({2 * n - 1: own for n, own in histogram.counts.items()}, "two captions")
        batch = batch_of(plan, name, histogram, BATCH)
        if "input_ids" in batch:  # CLIP's class looks for the last token
            ids, last = batch["input_ids"].clone(), batch["cu_seqlens"][1:].long() - 1
            batch = batch.having(input_ids=ids.index_fill(0, last, plan.tokenizer.sep_id))
        if "bool_masked_pos" in batch and "image_codes" not in batch:
            shape = (BATCH, config.model.num_patches)
            codes = torch.randint(0, config.codebook.vocab_size, shape, generator=draw)
            batch = batch.having(image_codes=codes)
        for field in ("pixel_values", "region_features", "region_classes"):
            if field in batch:
                noise = torch.rand(batch[field].shape, generator=draw)
                kind = batch[field].dtype
                batch = batch.having(**{field: (255 * noise if kind == torch.uint8 else noise).to(kind)})
        made.append(batch)
    return made


def our_step(task: Any) -> Callable[[Any], Callable[[], float]]:
    """Returns a function from a batch to one that runs forward and backward once and returns the loss."""
    import torch

    def prepare(batch: Any) -> Callable[[], float]:
        counts = task.counts(batch).items()
        denominators = {name: torch.tensor(float(max(count, 1))) for name, count in counts}

        def run() -> float:
            task.zero_grad()
            loss = task("step", batch, denominators).loss
            loss.backward()
            return loss.item()

        return run

    return prepare


def their_step(config: Any, task: Any, implementation: str) -> Callable[[Any], Callable[[], float]]:
    """Returns the same for transformers' class with our weights."""
    import transformers
    from huggingface_inputs import INPUTS, of_pairs

    from flava_ds.hf.foreign import layouts_of

    settings, tensors = layouts_of(config.model.type).write(config, task.state_dict())
    theirs = getattr(transformers, settings["architectures"][0])(
        transformers.AutoConfig.for_model(**settings)
    ).train()
    missing = theirs.load_state_dict(tensors, strict=False).missing_keys
    tied = ("decoder", "position_ids", "codebook", "head.bias")
    assert all(any(part in name for part in tied) for name in missing), missing
    theirs.tie_weights()
    length = None if "longest" in implementation else FULL
    inputs = INPUTS.get(config.model.type, of_pairs)

    def prepare(batch: Any) -> Callable[[], float]:
        given = inputs(batch, config, length)

        def run() -> float:
            theirs.zero_grad()
            # transformers overwrites its labels
            loss = theirs(**{name: own.clone() if hasattr(own, "clone") else own
                             for name, own in given.items()}).loss  # fmt: skip
            loss.backward()
            return loss.item()

        return run

    return prepare


def summarize(model: str, lengths: str, implementation: str, runs: list[dict], ours: list[dict]) -> dict:
    """Returns medians over processes, and the median of the paired ratios of total time."""
    total = [sum(run["seconds"].values()) for run in runs]
    our_total = [sum(run["seconds"].values()) for run in ours]
    ratios = [theirs / mine for theirs, mine in zip(total, our_total, strict=True)]
    return {
        "model": model,
        "lengths": lengths,
        "implementation": implementation,
        "batch": BATCH,
        "seconds": {
            kind: statistics.median(run["seconds"][kind] for run in runs) for kind in runs[0]["seconds"]
        },
        "total_seconds": statistics.median(total),
        "time_over_flava_ds": statistics.median(ratios),
        "time_over_flava_ds_range": [min(ratios), max(ratios)],
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
    }


def versions() -> dict:
    """Returns the measured versions."""
    import torch
    import transformers
    from flava_kernels.bench.machine import device_name

    return {
        "machine": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
