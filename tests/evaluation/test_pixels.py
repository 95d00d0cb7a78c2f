"""Raw pixels as a model: their nearest neighbours are those of the vectors, and nothing else is offered."""

import pytest
import torch
from evaluation.color_world import SIZE, write_image_folder

from flava_ds.errors import UserError
from flava_ds.evaluation.datasets.image_folder import ImageFolder
from flava_ds.evaluation.neighbours import Neighbours
from flava_ds.evaluation.pixels import Pixels, pixel_model, pixel_vectors
from flava_ds.evaluation.registry import find
from flava_ds.evaluation.runner import evaluate, find_data


def test_vectors_have_no_brightness_and_unit_length():
    images = torch.randint(
        0, 200, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    vectors = pixel_vectors(images)
    torch.testing.assert_close(vectors, pixel_vectors(images + 50))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert torch.equal(Pixels().image_features(images), vectors)


def test_tasks_on_image_features_run_and_others_are_refused(tmp_path):
    data = find_data(ImageFolder(), write_image_folder(tmp_path / "image_folder", {"train": 3, "test": 2}))
    task, model = Neighbours("n", ImageFolder()), pixel_model(None)
    assert evaluate([task], model, {"n": data})["n"].scores["top1_accuracy"].value == 1.0
    with pytest.raises(UserError, match="needs Embedder .* raw pixels .family 'none'. does not offer"):
        evaluate(find(["image_folder_zero_shot"]), model, {"image_folder_zero_shot": data})
