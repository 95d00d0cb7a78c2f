"""Checkpoints by their step numbers, also where these outgrow the eight digits of their folders' names."""

from __future__ import annotations

from pathlib import Path

from checkpoint_helpers import small_weights, write_checkpoint

from flava_ds.checkpoints import files
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import good_checkpoints
from flava_ds.config import CheckpointConfig

STEPS = (99_999_998, 99_999_999, 10**8)


def test_steps_of_nine_digits_come_after_those_of_eight(tmp_path: Path):
    place = Place(tmp_path / files.FOLDER)
    folders = [write_checkpoint(place, step, small_weights()) for step in STEPS]
    names = [folder.name for folder in folders]
    assert files.complete(place) == names and files.latest(place) == folders[-1]
    assert list(good_checkpoints(place)) == folders[::-1]
    assert files.prune(place, CheckpointConfig(keep_last=2)) == names[:1]
    (place / names[-1]).remove(files.MANIFEST)
    assert files.latest(place) == folders[1] and files.remove_leftovers(place) == names[-1:]
