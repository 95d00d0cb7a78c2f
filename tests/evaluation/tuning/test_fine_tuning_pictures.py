"""Pictures alone are fine-tuned, too; training pictures change with the epoch alone, on any number of ranks
and after a kill.
"""

import dataclasses
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from evaluation.color_world import write_image_folder, write_own
from evaluation.language_world import write_sst2
from evaluation.tuning.test_fine_tuning import QUICK, fitted, frozen, killed_and_resumed, learns
from sample_runs import world_config

from flava_ds.config import ImageTransformConfig
from flava_ds.errors import ConfigError, DataError
from flava_ds.evaluation.frozen_model import Workplace
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.shares import Share
from flava_ds.evaluation.tasks.own import CROPS
from flava_ds.evaluation.tuning import fine_tuning, fitting
from flava_ds.ranks.distributed import start


@pytest.fixture
def own(tmp_path):
    """Shards of 18 training and 9 test pictures."""
    write_own(tmp_path / "own", {"train": 6, "test": 3})
    return tmp_path


def noise(samples):
    """The same samples with noise for pictures, of which no crop looks like another one."""

    def load(row):
        draw = torch.Generator().manual_seed(row)
        return torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=draw)

    return dataclasses.replace(samples, load=load)


def on_noise():
    """Lets fine-tuning see noise."""
    plain = fine_tuning.inputs_of
    return mock.patch.object(
        fine_tuning, "inputs_of", lambda model, samples, encoder: plain(model, noise(samples), encoder)
    )


def augmented(folder, name, config=CROPS, seed=0, change=noise):
    """A task's training pictures, as they are and augmented."""
    task, model = tasks()[name], frozen(folder)
    samples = change(find_data(task.data, folder).read("train"))
    plain = fitting.inputs_of(model, samples, task.encoder(model))
    return plain, fitting.Augmented.of(plain, config, seed)


@pytest.mark.parametrize("name", ["own_image_tuned", "image_folder_tuned"])
def test_your_own_pictures_alone_are_learnt(own, name):
    write_image_folder(own / "image_folder", {"train": 6, "test": 3})
    task = tasks()[name]
    assert learns(task, own, samples=18, updates=80)["accuracy"].value == 1
    ran = task.settings(find_data(task.data, own))
    assert ran["chosen_on"] is None and ran["augment"]["crop_scale"] == (0.5, 1.0)


def test_a_split_val_that_is_reported_itself_does_not_choose(tmp_path):
    write_image_folder(tmp_path / "image_folder", {"train": 6, "val": 3})
    task = tasks()["image_folder_tuned"]
    data = find_data(task.data, tmp_path)
    assert data.split == "val" and task.settings(data)["chosen_on"] is None
    write_image_folder(tmp_path / "image_folder", {"test": 3})
    assert task.settings(find_data(task.data, tmp_path))["chosen_on"] == "val"


@pytest.mark.parametrize("name", ["own_image_tuned", "own_tuned"])
def test_training_pictures_change_with_the_epoch_and_not_with_their_neighbours(own, name):
    plain, changed = augmented(own, name)
    rows = np.array([2, 5, 11])
    texts, pixels = changed.read(rows, 3)
    assert pixels.shape == (3, 3, plain.size, plain.size) and pixels.dtype == torch.uint8
    assert all(np.array_equal(*both) for both in zip(texts, plain.read(rows)[0], strict=True))
    assert torch.equal(pixels[1:2], changed.read(rows[1:2], 3)[1])
    assert not torch.equal(pixels, changed.read(rows, 4)[1])
    assert not torch.equal(pixels, augmented(own, name, seed=1)[1].read(rows, 3)[1])
    assert torch.equal(plain.read(rows, 3)[1], plain.read(rows, 4)[1])


def test_what_is_squeezed_is_so_before_it_is_cropped(own):
    """All of a long picture stays, up to the filters of the two ways to resize."""
    stripes = torch.zeros(3, 40, 200, dtype=torch.uint8)
    stripes[:, :, :40] = stripes[:, :, -40:] = 255  # what a square crop would lose
    plain, changed = augmented(
        own,
        "own_tuned",
        ImageTransformConfig(crop_scale=(1.0, 1.0)),
        change=lambda samples: dataclasses.replace(samples, load=lambda row: stripes),
    )
    [expected], [found] = plain.read(np.array([0]))[1], changed.read(np.array([0]))[1]
    assert (expected.float() - found.float()).abs().mean() < 4
    assert found[:, :, 0].min() > 200 and found[:, :, -1].min() > 200


def test_a_whole_fine_tuning_sees_every_picture_in_each_epoch_in_another_way(own):
    seen, read = {}, fitting.Augmented.read

    def noting(self, rows, epoch=0):
        found = read(self, rows, epoch)
        seen.update({(epoch, row): one for row, one in zip(rows.tolist(), found[1], strict=True)})
        return found

    with on_noise(), mock.patch.object(fitting.Augmented, "read", noting):
        fitted(own, 10**9, None, "own_image_tuned")
    epochs = max(epoch for epoch, _ in seen)
    assert epochs > 3 and {row for _, row in seen} == set(range(18))
    for row in range(18):
        assert len({seen[epoch, row].numpy().tobytes() for epoch in range(epochs)}) == epochs


def test_a_killed_fine_tuning_ends_with_the_same_bits(own):
    """18 samples in batches of 8, so the kill is in the middle of an epoch."""
    with on_noise():
        expected, found = killed_and_resumed(own, "own_image_tuned")
    assert np.array_equal(found, expected)


def on_ranks(folder):
    """Fine-tunes on this rank's share of each batch."""
    task = dataclasses.replace(
        tasks()["own_image_tuned"],
        recipe=dataclasses.replace(QUICK, samples=18, updates=6, rows_at_once=3),
    )
    logits, predict = [], fitting.Fitting.predict
    noting = mock.patch.object(
        fitting.Fitting, "predict", lambda self, inputs: logits.append(predict(self, inputs)) or logits[-1]
    )
    with on_noise(), noting:
        task.run(frozen(folder, share=Share(start(60))), find_data(task.data, folder))
    return logits[-1]


def test_a_rank_that_reads_the_tiny_vocabulary_is_not_disturbed_by_one_that_writes_it(tmp_path):
    with Path(world_config(tmp_path).data.vocabulary).open() as opened:
        world_config(tmp_path)
        assert os.fstat(opened.fileno()).st_nlink == 0  # another file took its place; its words remain


@pytest.mark.distributed
def test_three_ranks_train_as_one_does(own, run_ranks):
    [alone] = run_ranks(on_ranks, 1, own)
    for found in run_ranks(on_ranks, 3, own):
        assert np.abs(found - alone).max() < 1e-4


def test_broken_pictures_to_report_on_are_named_before_the_training(tmp_path):
    write_image_folder(tmp_path / "image_folder", {"train": 6, "test": 12})
    task = dataclasses.replace(tasks()["image_folder_tuned"], recipe=QUICK)
    updates = mock.patch.object(fitting.Fitting, "step", side_effect=AssertionError("it trains"))

    def told(cut):
        for name in cut:
            broken = tmp_path / "image_folder" / "test" / "red" / f"{name}.png"
            broken.write_bytes(broken.read_bytes()[:60])
        with updates, pytest.raises(DataError) as raised:
            task.run(frozen(tmp_path), find_data(task.data, tmp_path))
        return str(raised.value)

    assert "picture 'red/1.png' cannot be used" in (one := told([1])) and "more" not in one
    every = told(range(12))
    assert (
        "picture 'red/0.png' cannot be used" in every and "; 11 more cannot be used: 'red/1.png', " in every
    )
    assert every.endswith("'red/7.png' and 2 more"), every


class BrokenOnOneHost(fitting.Inputs):
    """Its fourth picture, which rank 1 reads, is broken on that rank's machine alone."""

    def read(self, rows, epoch=0):
        if 3 in rows and torch.distributed.get_rank() == 1:
            raise DataError("picture 'd' cannot be used")
        return [], None


def told_of_a_broken_picture(_):
    share = Share(start(60))
    samples = SimpleNamespace(keys=tuple("abcdef"))
    with pytest.raises(DataError) as raised:
        fitting.check_pictures(BrokenOnOneHost(samples, [None] * 6, "pictures", 8), 1, share)
    return str(raised.value)


@pytest.mark.distributed
def test_a_picture_that_one_rank_cannot_read_ends_all(run_ranks):
    assert run_ranks(told_of_a_broken_picture, 2, None) == ["picture 'd' cannot be used"] * 2


@pytest.mark.parametrize(
    ("states", "after", "said"),
    [
        (None, 12, "starts again; with --keep DIR too, it would resume"),
        ("kept", 5, "starts again, as nothing was saved yet in .*image_folder_tuned.safetensors"),
        ("kept", 12, "resumes from .*kept/image_folder_tuned.safetensors"),
    ],
)
def test_an_interrupt_says_what_the_same_command_does(tmp_path, states, after, said):
    write_image_folder(tmp_path / "image_folder", {"train": 6, "test": 3})
    task = dataclasses.replace(
        tasks()["image_folder_tuned"], recipe=dataclasses.replace(QUICK, judged_every=10)
    )
    step = fitting.Fitting.step

    def interrupted(self, update, batches):
        if update == after:
            raise KeyboardInterrupt
        return step(self, update, batches)

    model = frozen(tmp_path, workplace=Workplace(states and tmp_path / states))
    with mock.patch.object(fitting.Fitting, "step", interrupted), pytest.raises(KeyboardInterrupt) as raised:
        task.run(model, find_data(task.data, tmp_path))
    assert re.fullmatch(f"interrupted; the same command {said}", str(raised.value))


@pytest.mark.parametrize(("begun", "other"), [(CROPS, None), (None, CROPS)])
def test_what_was_interrupted_goes_on_with_its_own_augmentation_only(own, begun, other):
    def stop(line):
        raise InterruptedError

    def run(augment, tell):
        model = frozen(own, workplace=Workplace(own / "states", tell))
        task = dataclasses.replace(tasks()["own_image_tuned"], recipe=QUICK, augment=augment)
        task.run(model, find_data(task.data, own))

    with mock.patch.object(fitting, "SAVED_EVERY_S", 0), pytest.raises(InterruptedError):
        run(begun, stop)
    with pytest.raises(DataError, match=r"an interrupted fine-tuning with augment .*delete the file"):
        run(other, print)


def test_texts_have_nothing_to_augment(tmp_path):
    write_sst2(tmp_path)
    task = dataclasses.replace(tasks()["glue_sst2"], augment=CROPS)
    with pytest.raises(DataError, match="has no pixels to augment; set the task's augment to None"):
        task.run(frozen(tmp_path), find_data(task.data, tmp_path))


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (
            {"crop_scale": (0.5, 1.0)},
            "augment is {'crop_scale': .*}; give a flava_ds.config.ImageTransformConfig",
        ),
        (ImageTransformConfig(crop_scale=(1.0, 0.5)), r"augment.crop_scale \(1.0, 0.5\): give the smallest"),
        (ImageTransformConfig(crop_scale=(0.5,)), "augment.crop_scale"),
        (ImageTransformConfig(crop_ratio=(0, 1)), "augment.crop_ratio"),
        (ImageTransformConfig(horizontal_flip=50), "augment.horizontal_flip is 50; it must"),
    ],
)
def test_an_augmentation_that_cannot_be_drawn_is_refused(augment, words):
    with pytest.raises(ConfigError, match=f"task own_tuned: {words}") as caught:
        dataclasses.replace(tasks()["own_tuned"], augment=augment)
    assert "\n" not in str(caught.value)
