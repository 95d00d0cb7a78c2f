"""Checkpoints in their folder: publishing, what is kept, and leftovers, on a file system and in object
storage.
"""

import json
import os
import random
from pathlib import Path

import fsspec
import pytest
import torch
from checkpoint_helpers import UNEVENTFUL, small_weights, write_checkpoint

from flava_ds.checkpoints import files
from flava_ds.checkpoints.checkpoint import newest_sound
from flava_ds.checkpoints.contents import verify
from flava_ds.checkpoints.place import Place
from flava_ds.checkpoints.reader import good_checkpoints, load_weights
from flava_ds.config import CheckpointConfig, Config
from flava_ds.data.quarantine import FOLDER as QUARANTINE
from flava_ds.demo.evaluation.evaluator import RESULT
from flava_ds.errors import CheckpointError
from flava_ds.evaluation.results import RESULTS
from flava_ds.ranks.distributed import start
from flava_ds.ranks.lock_files import NAME


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    """An empty folder for checkpoints."""
    if request.param == "disk":
        yield Place(tmp_path / files.FOLDER)
    else:
        yield Place("memory://bucket/runs/one")
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_publish_points_latest_at_the_new_one_and_leaves_nothing_behind(place):
    assert files.latest(place) is None and files.complete(place) == []
    first, second = (write_checkpoint(place, step, small_weights()) for step in (100, 200))
    assert files.latest(place) == second and files.complete(place) == [first.name, second.name]
    assert place.names() == ["latest", first.name, second.name]
    verify(second)


def test_a_checkpoint_without_its_manifest_is_none(place):
    """What is left when a save is interrupted: half a folder, or, on a file system, a temporary one."""
    final = write_checkpoint(place, 5, small_weights())
    (place / "step_00000006").write("weights_00000.safetensors", "half")
    (place / "step_00000007.tmp-2ranks").write("weights_00000.safetensors", "half")
    place.write(".latest.77-0a1b2c3d.partial", "half")
    assert files.latest(place) == final and files.complete(place) == [final.name]
    assert files.remove_leftovers(place) == [
        ".latest.77-0a1b2c3d.partial",
        "step_00000006",
        "step_00000007.tmp-2ranks",
    ]
    assert place.names() == ["latest", final.name]


def test_a_run_that_publishes_and_prunes_while_another_process_looks(place, monkeypatch):
    write_checkpoint(place, 5, small_weights())
    named, deleted = files.named, []

    def named_before(place):
        monkeypatch.setattr(files, "named", named)
        found = named(place)
        write_checkpoint(place, 10, small_weights())
        deleted.extend(files.prune(place, CheckpointConfig(keep_last=1)))
        return found

    monkeypatch.setattr(files, "named", named_before)
    assert files.latest(place).name == "step_00000010" and deleted == ["step_00000005"]


@pytest.mark.parametrize("stage", ["manifest", "rename", "latest"])
def test_a_publication_cut_short_leaves_the_old_or_the_new(tmp_path, monkeypatch, stage):
    """What a kill would leave: the next start finds a whole checkpoint and removes the rest, and the step can
    be saved again.
    """
    place = Place(tmp_path)
    old = write_checkpoint(place, 1, small_weights(1.0))
    write, rename = Place.write, os.rename

    def dying_write(folder: Place, name: str, text: str) -> None:
        if name == {"manifest": files.MANIFEST, "latest": files.LATEST}.get(stage):
            raise KeyboardInterrupt
        write(folder, name, text)

    def dying_rename(source: Path, target: Path) -> None:
        if stage == "rename":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write", dying_write)
        patch.setattr(files.os, "rename", dying_rename)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(place, 2, small_weights(2.0))
    assert files.latest(place) == old and torch.equal(load_weights(old)["a"], torch.ones(2, 3))
    assert len(files.remove_leftovers(place)) == (0 if stage == "latest" else 1)
    new = write_checkpoint(place, 2, small_weights(3.0))
    assert files.latest(place) == new and torch.equal(load_weights(new)["a"], torch.full((2, 3), 3.0))


def test_without_latest_or_what_it_names_the_newest_before_counts(place):
    """A run of weeks must not begin afresh, and delete its checkpoints, because one small file is gone."""
    first, second, third = (write_checkpoint(place, step, small_weights()) for step in (5, 6, 9))
    place.remove(files.LATEST)
    assert files.latest(place) == third
    place.write(files.LATEST, "step_00000008")
    assert files.latest(place) == second
    place.write(files.LATEST, third.name)
    third.remove(files.MANIFEST)
    assert files.latest(place) == second


def test_a_list_without_what_latest_names_is_read_again(place, monkeypatch):
    """Network file systems show a folder late, until this machine changes something there."""
    first, second = (write_checkpoint(place, step, small_weights()) for step in (5, 6))
    names, changed = Place.names, []
    late = {files.LATEST, first.name}
    monkeypatch.setattr(
        Place, "names", lambda place: [name for name in names(place) if changed or name in late]
    )
    monkeypatch.setattr(Place, "look_again", lambda place: changed.append(place))
    assert files.latest(place) == second and changed == [place]
    assert files.latest(place) == second and changed == [place]


def test_a_deletion_cut_short_leaves_nothing_that_counts(place, monkeypatch):
    first, second = (write_checkpoint(place, step, small_weights()) for step in (1, 2))
    remove = Place.remove

    def dying_remove(folder: Place, name: str) -> None:
        if name == first.name:
            raise KeyboardInterrupt
        remove(folder, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Place, "remove", dying_remove)
        files.prune(place, CheckpointConfig(keep_last=1))
    assert files.complete(place) == [second.name] and files.remove_leftovers(place) == [first.name]


@pytest.mark.parametrize("name", ["step_00000004", "../elsewhere", ""])
def test_a_wrong_latest_is_named(place, name):
    write_checkpoint(place, 5, small_weights())
    place.write(files.LATEST, name)
    with pytest.raises(CheckpointError, match="latest names '.*step_00000005"):
        files.latest(place)


def test_prune_keeps_the_newest_and_what_latest_names(place):
    for step in (1, 2, 3, 4):
        write_checkpoint(place, step, small_weights())
    place.write(files.LATEST, files.name_of(1))
    assert files.prune(place, CheckpointConfig(keep_last=2)) == [files.name_of(2)]
    assert files.complete(place) == [files.name_of(step) for step in (1, 3, 4)]


def test_prune_keeps_the_best_by_what_was_logged(place):
    """Step 2 has the lowest value; 3 was saved before the metric was chosen, 4 before there was any, and 6
    when the loss was not finite.
    """
    for step, metric in ((1, 2.5), (2, 1.5), (3, None), (4, None), (5, 3.0), (6, float("nan")), (7, 3.0)):
        known = {
            "name": "loss/mlm" if step != 3 else "loss/mim",
            "value": metric if step != 3 else 0.1,
            "step": step,
            "higher_is_better": False,
        }
        write_checkpoint(place, step, small_weights(), metric=known if step != 4 else None)
    files.prune(place, CheckpointConfig(keep_last=1, keep_best=1, best_metric="loss/mlm"))
    assert files.complete(place) == [files.name_of(step) for step in (2, 7)]


def test_prune_keeps_the_highest_where_higher_is_better(place):
    for step, value in ((1, 0.2), (2, 0.7), (3, 0.5), (4, 0.1)):
        metric = {"name": "evaluation/a/accuracy", "value": value, "step": step, "higher_is_better": True}
        write_checkpoint(place, step, small_weights(), metric=metric)
    files.prune(place, CheckpointConfig(keep_last=1, keep_best=2, best_metric="evaluation/a/accuracy"))
    assert files.complete(place) == [files.name_of(step) for step in (2, 3, 4)]


def saved(place: Place, step: int, value: float, seen: files.Seen, rules: CheckpointConfig) -> list[str]:
    """Publishes and prunes as a run does; returns what was deleted."""
    metric = {"name": rules.best_metric, "value": value, "step": step, "higher_is_better": False}
    spikes = {**UNEVENTFUL["spikes"], "calm": value < 0.7}
    final = write_checkpoint(place, step, small_weights(), metric=metric, spikes=spikes)
    seen.forget([final.name])
    good = next(good_checkpoints(place, seen), None)
    return files.prune(place, rules, good.name if good else None, seen)


KEPT = CheckpointConfig(keep_last=2, keep_every=2, keep_best=2, best_metric="loss/mlm")


def test_a_save_looks_only_at_what_is_new(place, monkeypatch):
    """Of 2,000 kept ones, each save read every state.json, and looked for every manifest four times."""
    looks, reads = [], []
    has, read = Place.has, Place.read
    monkeypatch.setattr(Place, "has", lambda place, name: looks.append(place) or has(place, name))
    monkeypatch.setattr(Place, "read", lambda place, name: reads.append(place) or read(place, name))
    seen, counts = files.Seen(), []
    for step in range(2, 42, 2):
        looks.clear(), reads.clear()
        saved(place, step, 0.5 - 0.01 * (step % 8), seen, KEPT)
        counts.append((len(looks), len(reads)))
    assert len(files.complete(place)) == 20
    assert counts[-1] == counts[5] and max(counts[-1]) < 10, counts
    looks.clear()
    saved(place, 42, 0.5, files.Seen(), KEPT)  # a run that goes on looks at all once
    assert 20 < len(looks) < 31


def test_what_is_remembered_changes_nothing_about_what_is_kept(tmp_path):
    """Whatever happens between saves: steps that are repeated after a rollback, and deletions, also half
    done, by someone else.
    """
    draw = random.Random(0)
    places, seen, step = [Place(tmp_path / "remembers"), Place(tmp_path / "looks")], files.Seen(), 0
    for _ in range(150):
        step += draw.randint(1, 3)
        value = draw.random()
        gone = [
            saved(place, step, value, known, KEPT)
            for place, known in zip(places, (seen, files.Seen()), strict=True)
        ]
        names = files.complete(places[1])
        assert gone[0] == gone[1] and files.complete(places[0]) == names
        event, name = draw.random(), draw.choice(names)
        for place in places:
            if event < 0.15:
                files.return_to(place, place / name)
            elif event < 0.3:
                place.remove(name)
            elif event < 0.45:
                (place / name).remove(files.MANIFEST)
            elif event < 0.5:
                place.write(files.LATEST, name)
        step = files.step_of(name) if event < 0.15 else step


def test_what_comes_back_is_looked_at_again(place):
    """Someone moves a checkpoint away, and later copies another of that name there."""
    seen, rules = files.Seen(), CheckpointConfig(keep_last=1, keep_best=1, best_metric="loss/mlm")
    saved(place, 1, 0.1, seen, rules)
    place.remove(files.name_of(1))
    saved(place, 2, 0.2, seen, rules)
    (place / files.name_of(1)).write(files.STATE, "{}")  # half of it is there
    assert files.complete(place, seen) == [files.name_of(2)]
    write_checkpoint(
        place,
        1,
        small_weights(),
        metric={"name": "loss/mlm", "value": 0.9, "step": 1, "higher_is_better": False},
    )
    assert saved(place, 3, 0.3, seen, rules) == [files.name_of(1)]


def test_one_that_is_being_deleted_is_not_taken_for_what_latest_names(place):
    seen = files.Seen()
    for step in (1, 2, 3, 4):
        write_checkpoint(place, step, small_weights())
    files.complete(place, seen)
    place.write(files.LATEST, files.name_of(3))
    (place / files.name_of(3)).remove(files.MANIFEST)
    assert files.prune(place, CheckpointConfig(keep_last=1), None, seen) == [files.name_of(1)]
    assert files.complete(place, seen) == [files.name_of(2), files.name_of(4)]


def test_a_state_that_could_not_be_read_once_is_read_again(place, monkeypatch):
    """A storage that does not answer must not cost the best checkpoint."""
    rules, seen, read = (
        CheckpointConfig(keep_last=1, keep_best=1, best_metric="loss/mlm"),
        files.Seen(),
        Place.read,
    )

    def silent(folder: Place, name: str) -> bytes:
        if folder.name == files.name_of(1) and name == files.STATE:
            raise OSError("no answer")
        return read(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "read", silent)
        write_checkpoint(
            place,
            1,
            small_weights(),
            metric={"name": "loss/mlm", "value": 0.1, "step": 1, "higher_is_better": False},
        )
        files.prune(place, rules, None, seen)
    assert saved(place, 2, 0.2, seen, rules) == []
    assert saved(place, 3, 0.3, seen, rules) == [files.name_of(2)]


def test_every_rule_keeps_its_own():
    names = [files.name_of(step) for step in (10, 20, 30, 40, 50, 60)]
    values = dict(zip(names, (5.0, 1.0, None, 0.5, 2.0, 9.0), strict=True))

    def steps(**rules) -> list[int]:
        return sorted(files.step_of(name) for name in files.kept(names, values, CheckpointConfig(**rules)))

    assert steps(keep_last=2) == [50, 60]
    assert steps(keep_last=1, keep_every=30) == [30, 60]
    assert steps(keep_last=1, keep_best=2, best_metric="loss/mlm") == [20, 40, 60]
    assert steps(keep_last=2, keep_every=20, keep_best=1, best_metric="loss/mlm") == [20, 40, 50, 60]


def test_an_earlier_run_is_set_aside_not_deleted(tmp_path):
    place = Place(tmp_path / files.FOLDER)
    assert files.set_aside(tmp_path, place) is None
    write_checkpoint(place, 5, small_weights())
    results = {RESULTS, "suites", "fine_tuning", RESULT, "report.html", QUARANTINE}
    for name in ("log.jsonl", "codebook.safetensors", NAME, *results):
        (tmp_path / name).write_text("{}\n")
    moved = files.set_aside(tmp_path, place)
    assert {path.name for path in tmp_path.iterdir()} == {"codebook.safetensors", NAME, moved.name}
    assert results < {path.name for path in moved.iterdir()}
    assert moved.name == "previous_1" and files.latest(place) is None
    assert files.latest(Place(moved / files.FOLDER)) is not None and (moved / "log.jsonl").is_file()


def test_checkpoints_elsewhere_are_not_moved_but_named(tmp_path):
    place = Place(tmp_path / "elsewhere")
    write_checkpoint(place, 5, small_weights())
    with pytest.raises(
        CheckpointError, match="elsewhere holds checkpoints of an earlier run and checkpoint.resume is off"
    ):
        files.set_aside(tmp_path, place)


def test_a_run_says_where_its_checkpoints_lie(tmp_path):
    config = Config(name="one")
    assert files.place_of(tmp_path / "one", config) == Place(tmp_path / "one" / "checkpoints")
    for directory in ("s3://bucket/runs", str(tmp_path / "big")):
        elsewhere = Config(name="one", checkpoint=CheckpointConfig(directory=directory))
        assert str(files.place_of(tmp_path / "one", elsewhere)) == f"{directory}/one"


def test_a_manifest_lists_every_file(place):
    final = write_checkpoint(place, 5, small_weights())
    assert sorted(json.loads(final.read(files.MANIFEST))) == [
        name for name in final.names() if name != files.MANIFEST
    ]


def sound_one(folder: str) -> str:
    """On every rank: the name of the newest sound checkpoint, or what is said where there is none."""
    place = Place(folder)
    try:
        found = newest_sound(start(60), (place / name for name in reversed(files.complete(place))))
        return found.folder.name
    except CheckpointError as error:
        return str(error)


@pytest.mark.distributed
def test_damaged_checkpoints_give_way_to_those_before(run_ranks, tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, small_weights())
    for step, expected in ((3, files.name_of(2)), (2, files.name_of(1)), (1, "step_00000001")):
        weights = next((tmp_path / files.name_of(step)).glob("weights*"))
        weights.write_bytes(weights.read_bytes()[:-1])
        for said in run_ranks(sound_one, 2, str(tmp_path)):
            assert expected in said and ("is damaged" in said) == (step == 1)


@pytest.mark.parametrize("act", ["prune", "publish", "go back", "leftovers"])
def test_of_a_checkpoint_that_is_a_link_the_link_alone_is_deleted(tmp_path, act):
    """One kept on another disk: the manifest at its target was deleted, and then every start was refused."""
    place, other = Place(tmp_path / "run"), Place(tmp_path / "other")
    target = write_checkpoint(other, 1, small_weights(1.0))
    write_checkpoint(place, 2, small_weights())
    name = (
        "step_00000001.tmp-2ranks"
        if act == "leftovers"
        else "step_00000003"
        if act == "go back"
        else target.name
    )
    (place.local / name).symlink_to(target.local)
    if act == "prune":
        assert files.prune(place, CheckpointConfig(keep_last=1)) == [name]
    elif act == "publish":
        new = write_checkpoint(place, 1, small_weights(3.0))
        assert torch.equal(load_weights(new)["a"], torch.full((2, 3), 3.0))
    elif act == "go back":
        assert files.return_to(place, place / "step_00000002") == [name]
    else:
        assert files.remove_leftovers(place) == [name]
    assert not (place.local / name).is_symlink()
    verify(target)
    assert torch.equal(load_weights(target)["a"], torch.ones(2, 3))
