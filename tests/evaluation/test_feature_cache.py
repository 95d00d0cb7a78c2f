"""Features are encoded once, go on after an interruption, and are never those of other weights."""

import numpy as np
import pytest
import torch
from evaluation.color_world import KnowsColors, color_model, png, write_image_folder

from flava_ds.evaluation import frozen_model
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.feature_cache import FeatureCache
from flava_ds.evaluation.labelled import Seen
from flava_ds.evaluation.preprocessing import CLIP_TRANSFORM, DINO_TRANSFORM
from flava_ds.evaluation.runner import find_data


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Twelve pictures in parts of eight."""
    monkeypatch.setattr(frozen_model, "BATCH_ROWS", 4)
    monkeypatch.setattr(frozen_model, "PART_BATCHES", 2)
    root = write_image_folder(tmp_path / "data", {"test": 4})

    def read(transform=CLIP_TRANSFORM):
        return Seen(find_data(ImageFolder(), root).test(), transform)

    return read


def encoded(tmp_path, pictures, weights="a", told=None, knows=None):
    """Returns features as a new process finds them, and how many pictures were encoded for that."""
    knows = knows or KnowsColors()
    tell = told.append if told is not None else lambda _: None
    model = color_model(knows, cache=FeatureCache(tmp_path / "features", weights, tell))
    return model.image_features(pictures, "a test"), sum(knows.calls)


def test_features_are_encoded_once_and_come_back_bit_by_bit(tmp_path, pictures):
    plain = color_model().image_features(pictures(), "a test")
    first, calls = encoded(tmp_path, pictures())
    again, no_calls = encoded(tmp_path, pictures())
    assert (calls, no_calls) == (12, 0) and torch.equal(first, plain) and torch.equal(again, plain)
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_an_interruption_loses_one_part_at_most(tmp_path, pictures):
    class Interrupted(KnowsColors):
        def image_features(self, pixels):
            if sum(self.calls) >= 8:
                raise KeyboardInterrupt
            return super().image_features(pixels)

    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, pictures(), knows=Interrupted())
    features, calls = encoded(tmp_path, pictures())
    assert calls == 4 and torch.equal(features, color_model().image_features(pictures(), "a test"))


def test_features_of_other_weights_are_said_and_computed_anew(tmp_path, pictures):
    encoded(tmp_path, pictures(), "a", knows=KnowsColors({"red": "blue"}))
    told = []
    features, calls = encoded(tmp_path, pictures(), "b", told)
    assert calls == 12 and torch.equal(features, color_model().image_features(pictures(), "a test"))
    assert len(told) == 1 and "of other weights (a, here b); its features are computed anew" in told[0]
    assert encoded(tmp_path, pictures(), "b", told)[1] == 0 and len(told) == 1


def test_other_pictures_and_transforms_have_files_of_their_own(tmp_path, pictures):
    encoded(tmp_path, pictures())
    assert encoded(tmp_path, pictures(DINO_TRANSFORM))[1] == 12
    fewer = Seen(pictures().images.select(np.arange(6)), CLIP_TRANSFORM)
    assert encoded(tmp_path, fewer)[1] == 6
    assert encoded(tmp_path, pictures())[1] == 0


def test_another_picture_under_its_name_is_encoded_anew(tmp_path):
    root = write_image_folder(tmp_path / "data", {"test": 2})
    files = sorted((root / "test").rglob("*.png"))

    def seen():
        return Seen(ImageFolder().read(root, "test").select(np.arange(4)), CLIP_TRANSFORM)

    assert encoded(tmp_path, seen())[1] > 0 and encoded(tmp_path, seen())[1] == 0
    files[-1].write_bytes(png("red", 20))  # not among the first four
    assert encoded(tmp_path, seen())[1] == 0
    files[0].write_bytes(png("red", 20))
    assert encoded(tmp_path, seen())[1] > 0


def test_a_damaged_file_is_said_and_written_again(tmp_path, pictures):
    encoded(tmp_path, pictures())
    file = sorted((tmp_path / "features").iterdir())[0]
    file.write_bytes(file.read_bytes()[:50])
    told = []
    assert encoded(tmp_path, pictures(), "a", told)[1] == 8 and "not readable" in told[0]
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    features, calls = encoded(tmp_path, pictures(), "a", told)
    assert calls == 8 and "damaged, its features are not those that were written" in told[1]
    assert torch.equal(features, color_model().image_features(pictures(), "a test"))
    assert encoded(tmp_path, pictures())[1] == 0
