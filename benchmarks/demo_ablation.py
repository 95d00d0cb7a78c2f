"""Ranks choices of the demo's recipe by results on a held-out TRAINING style; test styles are unused.

    python benchmarks/demo_ablation.py [ROW ...]

Every row sees 61,440 pairs of the other five styles with only the contrastive loss, on one rank with one
thread. It is scored on the 550 drawings of the held-out style: zero-shot concept among all training concepts,
in colour and converted to black and white by each drawing's mean luminance. The amount of work is fixed, so
load does not change results; cost is measured in CPU seconds, which load changes little. Writes
benchmarks/results/demo_ablation.json, row by row; a standard error of top-5 is about 1.3 points.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scripts import parser_of, read_results
from torch import Tensor

from flava_ds.allocator import keep_freed_memory
from flava_ds.data.loader import StepLoader
from flava_ds.demo.dataset import unpack
from flava_ds.demo.evaluation.inputs import build_inputs
from flava_ds.demo.evaluation.zero_shot import TEMPLATES
from flava_ds.demo.phases import cpu_launch
from flava_ds.demo.shards import write_shards
from flava_ds.evaluation.frozen_model import FrozenModel
from flava_ds.evaluation.opening import open_model
from flava_ds.evaluation.protocols import Embedder
from flava_ds.evaluation.samples import read_samples
from flava_ds.evaluation.zero_shot import classifier
from flava_ds.recipes import resolve
from flava_ds.recipes.demo import DATA

RESULTS = Path(__file__).parent / "results" / "demo_ablation.json"
FOLDER = Path("runs/ablation")
HELD_OUT = "fxemoji"
PAIRS = 61_440
COST_PAIRS = 64
STRONG = {
    "crop-scale": (0.7, 1.0),
    "crop-ratio": (0.75, 4 / 3),
    "rotation-degrees": 8,
    "color-jitter": 0.3,
    "grayscale": 0.2,
    "invert": 0.05,
    "edges": 0.12,
}
WEAK = {
    "crop-scale": (0.85, 1.0),
    "crop-ratio": (0.9, 1.1),
    "rotation-degrees": 3,
    "color-jitter": 0.2,
    "grayscale": 0.2,
    "invert": 0.02,
    "edges": 0.05,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One choice; the defaults are those of the demo that made 983 steps in ten minutes."""

    batch: int = 256
    lr: float = 5e-4
    width: int = 192
    heads: int = 3
    image_layers: int = 4
    text_layers: int = 2
    multimodal_layers: int = 2
    """Unused, but the initial weights depend on it."""
    projection: int = 192
    logit_scale: float = 2.6592
    weak: bool = False

    def overrides(self) -> list[str]:
        """Returns the choice as options of the recipe `demo`."""
        words = {
            "optimizer.lr": self.lr,
            "model.logit-scale-init": self.logit_scale,
            "model.projection-dim": self.projection,
        }
        layers = {"image": self.image_layers, "text": self.text_layers, "multimodal": self.multimodal_layers}
        for encoder, number in layers.items():
            shape = {
                "hidden-size": self.width,
                "intermediate-size": 4 * self.width,
                "num-attention-heads": self.heads,
                "num-hidden-layers": number,
            }
            words |= {f"model.{encoder}.{name}": value for name, value in shape.items()}
        words |= {
            f"data.sources.pair.transform.{name}": value
            for name, value in (WEAK if self.weak else STRONG).items()
        }
        words |= {"objectives.global-contrastive.weight": 1} | {
            f"objectives.{name}.weight": 0 for name in ("mim", "mlm", "mmm-image", "mmm-text", "itm")
        }
        words |= {
            "data.sources.image.weight": 0,
            "data.sources.text.weight": 0,
            "data.sources.pair.global-batch-size": self.batch,
        }
        steps = PAIRS // self.batch
        words |= {
            "training.total-steps": steps,
            "schedule.warmup-steps": steps // 10,
            "checkpoint.every-steps": 0,
        }
        return [
            word
            for name, value in words.items()
            for word in (f"--{name}", *map(str, value if isinstance(value, tuple) else (value,)))
        ]


SHALLOW = {"batch": 128, "width": 256, "heads": 4, "image_layers": 2, "text_layers": 1}
WIDE = SHALLOW | {"multimodal_layers": 1, "projection": 256, "weak": True}
ROWS = {
    "as it was": Row(),
    "lr 1e-3": Row(lr=1e-3),
    "lr 2e-3": Row(lr=2e-3),
    "batch 128": Row(batch=128),
    "batch 128, logit scale begins at 27": Row(batch=128, logit_scale=3.3),
    "batch 128, width 256, 2 + 1 layers": Row(**SHALLOW),
    "batch 128, weak augmentation": Row(batch=128, weak=True),
    "batch 128, weak augmentation, width 256, 2 + 1 layers": Row(**WIDE),
    "batch 64, weak augmentation, width 256, 2 + 1 layers": Row(**WIDE | {"batch": 64}),
    "batch 128, weak augmentation, width 384, 1 + 1 layers": Row(
        **WIDE | {"width": 384, "projection": 384, "heads": 6, "image_layers": 1}
    ),
}


def hold_out(root: Path) -> None:
    """Writes the training pairs without one style, and those of that style, as two folders of shards."""
    folders: dict[bool, list[dict[str, bytes]]] = {True: [], False: []}
    for shard in sorted((root / "pairs-train").glob("*.tar")):
        samples: dict[str, dict] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                samples.setdefault(key, {"key": key})[suffix] = tar.extractfile(member).read()
        for sample in samples.values():
            folders[json.loads(sample["json"])["style"] == HELD_OUT].append(sample)
    for held_out, samples in folders.items():
        write_shards(FOLDER / ("held-out" if held_out else "pairs-train"), samples, 700)


def score(run: Path, root: Path) -> dict[str, float]:
    """Evaluates a run on the held-out style."""
    opened = open_model(run)
    config, model = opened.config, opened.frozen()
    inputs, held_out = build_inputs(config, root), read_samples(FOLDER / "held-out")
    scale = opened.module.model.logit_scale.float().exp()
    concepts = sorted(set(inputs.train.column("concept")))
    names = [inputs.labels[concept] for concept in concepts]
    weights = classifier(model, names, TEMPLATES, "the ablation")
    right = torch.tensor([concepts.index(concept) for concept in held_out.column("concept")])
    colour = held_out.pixels(config.model.image.image_size)
    found = {}
    for name, pixels in (("colour", colour), ("black_and_white", black_and_white(colour))):
        similarity = embed(model, pixels) @ weights.T
        best = similarity.topk(5).indices == right[:, None]
        found |= {
            f"{name}_top1": best[:, 0].float().mean().item(),
            f"{name}_top5": best.any(1).float().mean().item(),
        }
        found[f"{name}_nats"] = F.cross_entropy(similarity * scale, right).item()
    return found


def black_and_white(pixels: Tensor) -> Tensor:
    """Thresholds each drawing at the mean luminance of its non-paper pixels: [N 3 S S] uint8 -> same."""
    luminance = (pixels.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    ink = luminance < 250
    split = torch.where(ink, luminance, 0).sum((1, 2)) / ink.sum((1, 2)).clamp(min=1)
    return (
        torch.where(luminance < split[:, None, None], 0, 255)
        .to(torch.uint8)[:, None]
        .expand_as(pixels)
        .contiguous()
    )


def cost(row: Row, root: Path, repeats: int = 6) -> float:
    """Measures the minimum CPU seconds of forward and backward of a demo's pair step.

    One rank's share, with all losses, in bf16.
    """
    shape = [word for word in row.overrides() if "objectives" not in word]
    names = {"--model", *(f"--model.{part}" for part in ("image", "text", "multimodal"))}
    words = [
        w for name, *values in _options(shape) if name.rpartition(".")[0] in names for w in (name, *values)
    ]
    words += [
        "--data.num-workers",
        "0",
        "--data.sources.pair.global-batch-size",
        str(COST_PAIRS),
        "--data.sources.pair.shards",
        str(root / "pairs-train"),
    ]
    config = resolve("demo", [*words, "--data.sources.image.weight", "0", "--data.sources.text.weight", "0"])
    (batch,), module = next(iter(StepLoader(config))), config.model.build(config).bfloat16()
    codes = torch.zeros(len(batch["masked_samples"]), config.model.image.num_patches, dtype=torch.int64)
    batch = batch.having(image_codes=codes)
    counts = {name: torch.tensor(float(max(1, count))) for name, count in module.counts(batch).items()}
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        module("step", batch, counts).loss.backward()
        seconds.append(time.process_time() - begun)
        module.zero_grad(set_to_none=True)
    return min(seconds)


def _options(words: list[str]) -> list[list[str]]:
    """Groups a command line by option."""
    found: list[list[str]] = []
    for word in words:
        found.append([word]) if word.startswith("--") else found[-1].append(word)
    return found


def embed(model: FrozenModel, pixels: Tensor) -> Tensor:
    """Encodes pictures into the contrastive space: [N 3 S S] -> [N r]."""
    embedder = model.need(Embedder, "the ablation")
    return torch.cat(
        [embedder.project_images(embedder.image_features(rows)).float() for rows in pixels.split(128)]
    )


def main() -> None:
    """Trains and evaluates the requested rows."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "rows", nargs="*", default=list(ROWS), metavar="ROW", help=f"default: all of {', '.join(ROWS)}"
    )
    torch.set_num_threads(1)
    keep_freed_memory()
    root = unpack(DATA)
    if not (FOLDER / "held-out").exists():
        hold_out(root)
    for name in parser.parse_args().rows:
        run = name.replace(" ", "-").replace(",", "").replace("+", "and")
        words = [
            "--name",
            run,
            "--logging.run-directory",
            str(FOLDER),
            "--data.sources.pair.shards",
            str(FOLDER / "pairs-train"),
            *ROWS[name].overrides(),
        ]
        launch = cpu_launch(words, ranks=1)
        subprocess.run(
            [
                "env",
                *(f"{key}={value}" for key, value in (launch.environment | {"OMP_NUM_THREADS": "1"}).items()),
                *launch.arguments,
            ],
            check=True,
        )
        results = read_results(RESULTS, {"rows": []})
        kept = [row for row in results["rows"] if row["name"] != name]
        found = {
            "name": name,
            **asdict(ROWS[name]),
            "pair_step_cpu_s": cost(ROWS[name], root),
            **score(FOLDER / run, root),
        }
        results |= {"held_out": HELD_OUT, "pairs": PAIRS, "rows": [*kept, found]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
