"""Times forward + backward of pair, image and text steps against Hugging Face's FLAVA, side by side.

    python benchmarks/step_vs_huggingface.py [--rounds 5] [--out benchmarks/results/step_vs_huggingface.json]

The configuration is small enough for two CPU cores: width 192, 3 heads, MLP 768, 4/4/2 layers, 64 px / patch
8, vocabulary 30,522, codebook 8,192, batch 32, fp32, labels given. Two lengths of text:

    full   every caption fills its 77 tokens: equal work on both sides
    demo   caption lengths of the demo's training pairs and glosses; Hugging Face pads to 77 as its published
           pipelines do, and, as a second peer, only to the longest of the batch

Our trainer makes the C library keep freed memory on a CPU (flava_ds/allocator.py), so our side does
here. Theirs runs unmodified, and once more with the same setting, to separate the two effects.

Each measurement runs in its own process, so that peak memory is its own; processes alternate, so that drift
of the machine affects all alike. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, FULL, STEPS = 32, 77, 3
PEERS = {
    "full": ("flava_ds", "huggingface", "huggingface-keeping"),
    "demo": ("flava_ds", "huggingface", "huggingface-keeping", "huggingface-longest"),
}


def main() -> None:
    """Runs all measurements, or (with --measure) a single one and prints its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="processes per implementation and length")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "step_vs_huggingface.json"
    )
    parser.add_argument("--measure", nargs=2, metavar=("LENGTHS", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.threads)))
        return
    rows = []
    for lengths, implementations in PEERS.items():
        runs: dict[str, list[dict]] = {name: [] for name in implementations}
        for _ in range(arguments.rounds):
            for name in implementations:
                runs[name].append(run_process(lengths, name, arguments.threads))
        rows += [summarize(lengths, name, results, runs["flava_ds"]) for name, results in runs.items()]
    report = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "batch": BATCH,
        "rows": rows,
    } | versions()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


def run_process(lengths: str, implementation: str, threads: int) -> dict:
    """Measures in a new process."""
    command = [sys.executable, __file__, "--measure", lengths, implementation, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return json.loads(
        subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout.splitlines()[-1]
    )


def measure(lengths: str, implementation: str, threads: int) -> dict:
    """Returns seconds per step kind (best of STEPS after a warm-up) and the process's peak memory in MiB."""
    import torch

    from flava_ds.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    if implementation in ("flava_ds", "huggingface-keeping"):
        keep_freed_memory()
    step = (
        our_step()
        if implementation == "flava_ds"
        else their_step(None if implementation.endswith("longest") else FULL)
    )
    seconds = {}
    for batch in batches(lengths):
        run = step(batch)
        run()
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds[str(batch.kind)] = min(times)
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def configuration():
    """Returns the peers' common shape."""
    from flava_ds.config import (
        CodebookConfig,
        Config,
        FlavaConfig,
        FlavaTextConfig,
        ImageEncoderConfig,
        MultimodalEncoderConfig,
    )

    shape = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    model = FlavaConfig(
        image=ImageEncoderConfig(image_size=64, patch_size=8, num_hidden_layers=4, **shape),
        text=FlavaTextConfig(num_hidden_layers=4, **shape),
        multimodal=MultimodalEncoderConfig(num_hidden_layers=2, **shape),
        projection_dim=192,
    )
    return Config(name="benchmark", model=model, codebook=CodebookConfig(image_size=64))


def batches(lengths: str) -> list:
    """Returns a batch per kind: 38 % of patches and 15 % of tokens masked, one pair in ten mismatched."""
    import torch

    from flava_ds.batch import Batch, Kind

    config, draw = configuration(), torch.Generator().manual_seed(0)
    made = []
    for kind in (Kind.PAIR, Kind.IMAGE, Kind.TEXT):
        matched = torch.arange(BATCH) % 10 != 9 if kind == Kind.PAIR else torch.ones(BATCH, dtype=torch.bool)
        fields: dict = {"kind": kind, "source": str(kind), "size": BATCH}
        if kind != Kind.TEXT:
            mask = torch.rand(BATCH, config.model.image.num_patches, generator=draw).argsort(1) < 24
            fields |= {
                "pixel_values": torch.randint(0, 256, (BATCH, 3, 64, 64), generator=draw, dtype=torch.uint8),
                "bool_masked_pos": mask,
                "image_codes": torch.randint(0, 8192, mask.shape, generator=draw),
                "mim_rows": (mask & matched[:, None]).flatten().nonzero()[:, 0],
            }
        if kind != Kind.IMAGE:
            fields |= text_fields([FULL] * BATCH if lengths == "full" else demo_lengths(kind), matched, draw)
        if kind == Kind.PAIR:
            fields |= {"itm_labels": matched.long(), "matched_rows": matched.nonzero()[:, 0]}
        made.append(Batch(**fields))
    return made


def text_fields(lengths: list[int], matched, draw) -> dict:
    """Returns random ids of the given lengths, 15 % of them masked."""
    import torch

    total, owner = sum(lengths), torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = torch.randint(104, 30522, (total,), generator=draw)
    chosen = torch.rand(total, generator=draw) < 0.15
    rows = (chosen & matched[owner]).nonzero()[:, 0]
    return {
        "input_ids": ids,
        "input_ids_masked": torch.where(chosen, 103, ids),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        "max_seqlen": max(lengths),
        "mlm_rows": rows,
        "mlm_labels": ids[rows],
    }


def demo_lengths(kind: str) -> list[int]:
    """Returns token counts, special tokens included, of the first texts of the demo's training data."""
    from flava_ds.config import SourceConfig
    from flava_ds.data.loader import iterate_once
    from flava_ds.data.tokenizer import WordPieceTokenizer
    from flava_ds.demo.dataset import unpack

    data = unpack()
    folder = data.pairs_train if kind == "pair" else data.text
    config = configuration().with_sources(
        {"lengths": SourceConfig(kind="text", shards=str(folder), max_tokens=FULL)}
    )
    samples = next(iter(iterate_once(config, "lengths", batch_size=BATCH)))
    return [
        len(ids)
        for ids in WordPieceTokenizer("bert_base_uncased").encode_batch(
            [sample.text for sample in samples], FULL
        )
    ]


def our_step():
    """Returns a function from a batch to a callable that runs forward and backward once."""
    import torch

    from flava_ds.families.flava.task import build_task

    module = build_task(configuration())

    def prepare(batch):
        denominators = {
            name: torch.tensor(float(max(count, 1))) for name, count in module.counts(batch).items()
        }

        def run() -> None:
            module.zero_grad()
            module("step", batch, denominators).loss.backward()

        return run

    return prepare


def their_step(text_length: int | None):
    """Returns the same for transformers, padded to `text_length`, or to the batch's longest if None."""
    import torch.nn.functional as F
    from transformers import FlavaConfig, FlavaForPreTraining

    from flava_ds.batch import IGNORE_INDEX
    from flava_ds.families.flava.hf import transformers_settings
    from flava_ds.hf.parity import huggingface_inputs

    config = configuration()
    model = FlavaForPreTraining(FlavaConfig(**transformers_settings(config))).train()
    fill = {"mlm_labels": IGNORE_INDEX, "input_ids": 0, "input_ids_masked": 0, "attention_mask": 0}

    def prepare(batch):
        inputs = huggingface_inputs(batch, config)
        for name in fill.keys() & inputs.keys():
            if text_length is not None:
                inputs[name] = F.pad(inputs[name], (0, text_length - inputs[name].shape[1]), value=fill[name])
        if batch.kind == "text":
            del inputs["input_ids"]

        def run() -> None:
            model.zero_grad()
            # transformers overwrites its labels
            model(**{name: tensor.clone() for name, tensor in inputs.items()}).loss.backward()

        return run

    return prepare


def summarize(lengths: str, implementation: str, runs: list[dict], ours: list[dict]) -> dict:
    """Returns medians over processes, and the median of the paired ratios of total time."""
    total = [sum(run["seconds"].values()) for run in runs]
    our_total = [sum(run["seconds"].values()) for run in ours]
    return {
        "lengths": lengths,
        "implementation": implementation,
        "seconds": {
            kind: statistics.median(run["seconds"][kind] for run in runs) for kind in runs[0]["seconds"]
        },
        "total_seconds": statistics.median(total),
        "time_over_flava_ds": statistics.median(
            theirs / mine for theirs, mine in zip(total, our_total, strict=True)
        ),
        "time_over_flava_ds_range": [
            f([t / m for t, m in zip(total, our_total, strict=True)]) for f in (min, max)
        ],
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


def table(rows: list[dict]) -> str:
    """Returns a Markdown table, one line per row."""
    lines = [
        "| text | implementation | pair s | image s | text s | sum s | time / flava_ds | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s = row["seconds"]
        low, high = row["time_over_flava_ds_range"]
        lines.append(
            f"| {row['lengths']} | {row['implementation']} | {s['pair']:.3f} | {s['image']:.3f} | "
            f"{s['text']:.3f} | {row['total_seconds']:.3f} "
            f"| {row['time_over_flava_ds']:.2f} ({low:.2f} to {high:.2f}) | {row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
