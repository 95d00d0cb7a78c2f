"""What decides about a run: checkpoints, configurations, command lines."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # makes the folder of torch's cache, which a command that is watched may not
from checkpoint_helpers import small_weights, write_checkpoint
from data.shard_mutations import END, members
from fuzz.mutations import NASTY_TEXTS, as_json, change_bytes, change_json
from fuzz.oracles import Finding, command, complaint
from fuzz.surface import Surface, small_run

from flava_ds import config as configuration
from flava_ds.checkpoints import contents, files
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import CheckpointReader, load_weights
from flava_ds.config import Config, parse, to_dict
from flava_ds.config.strict_json import from_dict
from flava_ds.recipes import resolve

ROOT = Path(__file__).parents[2]


class Checkpoints(Surface):
    """A file of the latest of two checkpoints: it is read as it was, or the one before is taken.

    An input is JSON: the file, its bytes, and whether manifest and `latest` agree with them.
    """

    name = "checkpoint"

    def seeds(self) -> Sequence[bytes]:
        names = [
            *contents.required(2),
            files.MANIFEST,
            files.LATEST,
        ]
        return [as_json({"file": name, "agreed": agreed}) for name in names for agreed in (False, True)]

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        wanted = json.loads(data)
        return as_json(wanted | {"seed": draw.getrandbits(48)})

    def check(self, folder: Path, data: bytes) -> None:
        wanted = json.loads(data)
        before, newest = (
            write_checkpoint(folder / "run", step, small_weights(float(step))) for step in (5, 7)
        )
        path = (
            newest.parent.local / files.LATEST
            if wanted["file"] == files.LATEST
            else newest.local / wanted["file"]
        )
        content = self._content(wanted, path.read_bytes())
        path.write_bytes(content)
        if wanted["agreed"] and wanted["file"] not in (files.MANIFEST, files.LATEST):
            manifest = json.loads(newest.read(files.MANIFEST))
            manifest[wanted["file"]] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (newest.local / files.MANIFEST).write_text(json.dumps(manifest))
        if wanted["agreed"] and wanted["file"] != files.LATEST:
            files.point(newest.parent, newest.name)
        found, _ = complaint(lambda: files.latest(newest.parent))
        for candidate in [found] if found is not None else []:
            sound, _ = complaint(lambda candidate=candidate: self._verify(candidate))
            step = {before: 5, newest: 7}.get(candidate)
            if sound is None:
                complaint(lambda candidate=candidate: load_weights(candidate))
            elif not wanted["agreed"] and not self._same(sound, small_weights(float(step))):
                raise Finding("changed weights are believed")
        weights, said = complaint(lambda: load_weights(before))
        if weights is None or not self._same(weights, small_weights(5.0)):
            raise Finding(f"the checkpoint before is not what it was: {said}")

    @staticmethod
    def _content(wanted: dict[str, Any], content: bytes) -> bytes:
        """Returns what is in the file: as it is given, or changed by a seed."""
        if "content" in wanted:
            return base64.b64decode(wanted["content"])
        if "seed" not in wanted:
            return content
        draw = random.Random(wanted["seed"])
        if wanted["file"].endswith(".json") and draw.random() < 0.7:
            return as_json(change_json(draw, json.loads(content)))
        if wanted["file"].endswith(".safetensors") and draw.random() < 0.6:
            length = int.from_bytes(content[:8], "little")
            header = as_json(change_json(draw, json.loads(content[8 : 8 + length])))
            return len(header).to_bytes(8, "little") + header + content[8 + length :]
        return change_bytes(draw, content)

    @staticmethod
    def _verify(folder: Place) -> dict[str, torch.Tensor]:
        """Does what a run that goes on does before it takes a checkpoint for sound; returns its weights."""
        contents.verify(folder)
        with contextlib.closing(CheckpointReader(folder)) as reader:
            reader.check_parts()
            return reader.weights()

    @staticmethod
    def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
        return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def portable(recipe: str) -> dict[str, Any]:
    """Returns a recipe's configuration as JSON types, without the names of this machine's folders."""
    return json.loads(json.dumps(to_dict(resolve(recipe, []))).replace(f"{ROOT}/", ""))


class Configurations(Surface):
    """A config.json: refused in one line, or a run that JSON keeps, whose folder and learning rates are
    sane.
    """

    name = "config"

    def seeds(self) -> Sequence[bytes]:
        return [as_json(portable(name)) for name in ("flava_debug", "demo_clip")]

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        if draw.random() < 0.1:
            return change_bytes(draw, data)
        try:
            return as_json(change_json(draw, json.loads(data)))
        except (ValueError, RecursionError):
            return change_bytes(draw, data)

    def check(self, folder: Path, data: bytes) -> None:
        config, _ = complaint(lambda: parse(data, "config.json"))
        if config is None:
            return
        again = from_dict(Config, json.loads(json.dumps(to_dict(config))))
        if again != config:
            raise Finding("JSON does not keep the configuration")
        steps = config.training.total_steps
        rates = [config.learning_rate(step) for step in {0, 1, steps // 2, steps - 1}]
        if not all(math.isfinite(rate) and 0 <= rate <= 10 for rate in rates):
            raise Finding(f"learning rates {rates}")
        runs = Path(config.logging.run_directory).resolve()
        if not config.run_path.resolve().is_relative_to(runs) or config.run_path.resolve() == runs:
            raise Finding(f"the run's folder is {config.run_path}")
        if any(source.allow_code for source in config.data.sources.values()):
            raise Finding("a file allows code")


class Commands(Surface):
    """A command line, as JSON: one line and a documented status, whatever the words are."""

    name = "command"

    def seeds(self) -> Sequence[bytes]:
        lines = [
            ["config", "flava_debug", "--training.total-steps", "5", "--optimizer.lr", "1e-3"],
            [
                "config",
                "flava_debug",
                "--data.sources.pair.shards",
                "x",
                "--optimizer",
                "lion",
                "--schedule",
                "wsd",
            ],
            ["config", "run/config.json", "--name", "x", "--model.image.image-mean", "0", "0", "0"],
            ["train", "flava_debug", "--dry-run", "--ranks", "1", "--data.sources.pair.shards", "shards"],
            ["train", "run/config.json", "--dry-run", "--checkpoint.directory", "x", "--max-restarts", "1"],
            ["prepare", "index", "shards/0.tar", "--processes", "1"],
            ["prepare", "index", "shards/{0..3}.tar"],
            ["prepare", "skiplist", "shards", "--out", "list.txt", "--bits", "3"],
            ["prepare", "coco", "run/config.json", "--images", "shards", "--out", "coco"],
            ["evaluate", "run", "--task", "cifar10_probe", "--data", "shards"],
            ["report", "run"],
            ["convert", "run", "--to", "safetensors", "out.safetensors"],
            ["convert", "run", "--to", "hf", "out"],
        ]
        return [as_json(line) for line in lines]

    def mutate(self, draw: random.Random, data: bytes) -> bytes:
        words = [str(word) for word in json.loads(data)]
        for _ in range(draw.randint(1, 3)):
            way, at = draw.randrange(5), draw.randrange(1, len(words) + 1)
            nasty = draw.choice(
                [text for text in NASTY_TEXTS if len(text) < 1000 and not text.startswith("-h")]
            )
            if way <= 1:
                words[at:at] = [nasty]
            elif way == 2 and at < len(words):
                words[at] = nasty
            elif way == 3 and at < len(words) and len(words) > 2:
                del words[at]
            elif at < len(words) and words[at]:
                place = draw.randrange(len(words[at]))
                words[at] = (
                    words[at][:place]
                    + draw.choice("\0\n\x1b'\"=.,-_{}0a\u00e9\udc80")
                    + words[at][place + 1 :]
                )
        return as_json(words)

    def check(self, folder: Path, data: bytes) -> None:
        words = [str(word) for word in json.loads(data)]
        if words[:1] == ["train"] and "--dry-run" not in words:
            words.insert(1, "--dry-run")  # what follows it is the launcher's
        if "/dev/stdin" in " ".join(words) or words[:1] in (["demo"], ["codebook"]):
            return
        (folder / "shards").mkdir()
        (folder / "shards" / "0.tar").write_bytes(b"".join([*members(), END]))
        write_checkpoint(folder / "run" / "checkpoints", 5, small_weights())
        configuration.save(small_run(), folder / "run" / "config.json")
        with contextlib.chdir(folder):
            command([word for word in words if word not in ("--debug",)])
