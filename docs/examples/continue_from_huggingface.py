"""Continues training from a FLAVA that transformers saved, such as a snapshot of facebook/flava-full.

    python docs/examples/continue_from_huggingface.py FOLDER --recipe flava_base --steps 1000 ...

Converts the folder's weights, then starts `flava-ds train` with the shape of that model. Everything after the
named options goes to the trainer, for instance `--data.sources.pmd.shards /data/pmd`. The optimizer starts
anew: a published checkpoint holds no moments.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ENCODERS = ("image", "text", "multimodal")


def main() -> int:
    """Converts and trains; returns the trainer's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="as save_pretrained writes it")
    parser.add_argument("--recipe", default="flava_base")
    parser.add_argument("--converted", type=Path, default=Path("converted"))
    parser.add_argument("--steps", type=int, default=1000)
    options, rest = parser.parse_known_args()

    program = [sys.executable, "-P", "-m", "flava_ds.cli"]
    convert = [*program, "convert", str(options.folder), "--to", "flava_ds", str(options.converted)]
    if (status := subprocess.run(convert).returncode) != 0:
        return status

    model = json.loads((options.converted / "config.json").read_text(encoding="utf-8"))["model"]
    if model["type"] != "flava":
        parser.error(
            f"{options.folder} holds a model of family '{model['type']}' and not a FLAVA; start a recipe of "
            f"that family with `flava-ds train RECIPE --initial-weights {options.converted}`"
        )
    shape = []
    for encoder in ENCODERS:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            shape += [f"--model.{encoder}.{name.replace('_', '-')}", str(model[encoder][name])]
    shape += ["--model.text.vocab-size", str(model["text"]["vocab_size"])]
    shape += ["--model.projection-dim", str(model["projection_dim"])]

    weights = ["--initial-weights", str(options.converted), "--training.total-steps", str(options.steps)]
    return subprocess.run([*program, "train", options.recipe, *shape, *weights, *rest]).returncode


if __name__ == "__main__":
    sys.exit(main())
