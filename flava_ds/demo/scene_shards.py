"""Scenes as shards of pairs, with captions, labels of tasks and, from a detector, with regions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from flava_ds.data.regions import REGIONS_SUFFIX
from flava_ds.demo.dataset import CHECKSUMS
from flava_ds.demo.scene_labels import labels_of, subgroups
from flava_ds.demo.scene_texts import captions
from flava_ds.demo.scenes import Drawings, Scene, draw_scene, folder_of, paint, read_drawings
from flava_ds.demo.shards import as_json
from flava_ds.errors import DataError
from flava_ds.prepare.regions import encoded
from flava_ds.prepare.shard_writer import Counts, ShardWriter
from flava_ds.regions.detector import Detector, load_detector
from flava_ds.storage.atomic import PARTIAL, hold

SCENES = 8_000
"""As many as there are training drawings, and some more."""
SEED = 2
"""Not those of the detector's training and of the evaluations."""
PER_SHARD = 1_000
POLL_S = 1.0
_AT_ONCE = 50
"""Divides PER_SHARD, so that a continued call forms the same batches."""


def write_scenes(
    root: Path,
    out: Path,
    detector: Detector | None,
    *,
    split: str = "train",
    count: int = SCENES,
    tell: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Writes scenes of the demo's drawings in `root` to folder `out`, or continues an interrupted call.

    Each has KEY.png, KEY.txt, KEY.json with `captions`, `boxes`, `labels`, `subgroups`, and the texts
    `question` and `entailment`; KEY.TASK.safetensors with each task's labels (demo/scene_labels.py); and,
    with a detector, KEY.regions.safetensors as of `write_regions`.

    Raises: DataError for an unknown split or no scenes, or if `out` contains something else.
    """
    if count < 1:
        raise DataError(f"{count} scenes are none: write at least 1")
    folder_of(root, split)
    by = "none" if detector is None else detector.fingerprint()
    made_of = f"{hashlib.sha256(CHECKSUMS.read_bytes()).hexdigest()} {split} {SEED} {count} {by} labels"
    fingerprint = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    writer = ShardWriter(out, fingerprint, samples_per_shard=PER_SHARD)
    if writer.complete:
        return writer.counts
    drawings, names = read_drawings(root, split), subgroups(root)
    with writer:
        for start in range(writer.counts.entries, count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, count))
            _write(writer, drawings, names, numbers, detector)
            if numbers.stop % PER_SHARD == 0 or numbers.stop == count:
                tell(f"{out}: {numbers.stop:,} of {count:,} scenes")
        return writer.close()


def provide_scenes(root: Path, out: Path) -> None:
    """Writes the training scenes with the demo's regions to `out`, unless they are there. The folder appears
    whole; what an interrupted call has written is continued. Of several processes that call this at the same
    time one writes and the others wait.

    Raises: DataError if `out` contains something else.
    """
    detector = load_detector("demo")
    while not out.exists():
        with suppress(BlockingIOError), hold(out.with_name(f".{out.name}.lock")) as lock:
            if not out.exists():  # or else another process has finished in between
                staging = out.with_name(f".{out.name}{PARTIAL}")
                write_scenes(root, staging, detector, count=SCENES, tell=print)
                staging.rename(out)
            Path(lock.name).unlink(missing_ok=True)
        time.sleep(0 if out.exists() else POLL_S)
    write_scenes(root, out, detector, count=SCENES, tell=print)


def _write(
    writer: ShardWriter,
    drawings: Drawings,
    names: Sequence[str],
    numbers: range,
    detector: Detector | None,
) -> None:
    from torchvision.io import encode_png  # loads triton

    scenes = [draw_scene(drawings, SEED, number) for number in numbers]
    pictures = [paint(drawings, scene) for scene in scenes]
    found = [] if detector is None else encoded(detector, detector(torch.stack(pictures)))
    for place, (number, scene, picture) in enumerate(zip(numbers, scenes, pictures, strict=True)):
        key = f"{drawings.name}_{SEED}_{number:06d}"
        told = labels_of(drawings, scene, key, number, names)
        record = describe(drawings, scene, key) | dict(told.texts)
        members = {
            "png": encode_png(picture).numpy().tobytes(),
            "txt": record["captions"][0].encode(),
            "json": as_json(record),
            **told.members,
        }
        if found:
            members[REGIONS_SUFFIX] = found[place]
        writer.write(key, members, tuple(record["captions"]))


def describe(drawings: Drawings, scene: Scene, key: str) -> dict:
    """Returns what is known of a scene. Its labels are for looking: no region has them as tags."""
    return {
        "captions": captions(drawings, scene, key),
        "boxes": [list(box) for box in scene.boxes],
        "labels": [drawings.labels[row] for row in scene.rows],
        "subgroups": [drawings.subgroups[row] for row in scene.rows],
    }
