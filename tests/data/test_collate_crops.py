"""Crops of each image, each by a transform and seeds of its own."""

import dataclasses

import numpy as np
import pytest
import torch
from test_collate import collator, collator_of, samples

from flava_ds.config import UNCHANGED, ImageTransformConfig
from flava_ds.data.order import crop_seeds
from flava_ds.data.transforms import ImageTransform
from flava_ds.errors import ConfigError
from flava_ds.objectives.dino import DinoConfig
from flava_ds.objectives.simclr import SimclrConfig

STRONG = ImageTransformConfig(crop_scale=(0.3, 0.9), horizontal_flip=0.5, brightness=0.4, blur=0.5)
OWN = DinoConfig(first_global=STRONG, second_global=UNCHANGED, local=STRONG, local_crops=3, local_size=8)


def test_crops_are_the_transforms_of_the_pictures_and_do_not_depend_on_neighbours(make_config):
    collate = collator(make_config, "images", dino=OWN)
    made = samples(6)
    batch = collate(made)
    edge = batch["pixel_values"].shape[-1]
    assert batch["global_crops"].shape == (6, 2, 3, edge, edge) and batch["local_crops"].shape == (
        6,
        3,
        3,
        8,
        8,
    )
    images, seeds = [s.image for s in made], np.array([s.seed for s in made], dtype=np.uint64)
    for number in range(3):
        (expected,) = ImageTransform(STRONG, (8,))(images, crop_seeds(seeds, "local_crops", number))
        assert torch.equal(batch["local_crops"][:, number], expected)
    assert not torch.equal(batch["local_crops"][:, 0], batch["local_crops"][:, 1])
    alone = collate(made[4:5])
    for name in ("global_crops", "local_crops"):
        assert torch.equal(alone[name], batch[name][4:5]), name
    assert collate.plan.crops["local_crops"].bytes_per_sample == 3 * 3 * 8 * 8


def test_an_objective_of_crops_alone_leaves_the_picture_out(make_config):
    config = make_config()
    images = {name: own for name, own in config.data.sources.items() if own.kind == "image"}
    config = dataclasses.replace(config.with_sources(images), objectives={"dino": OWN})
    (name,) = images
    batch = collator_of(config, name)(samples(4))
    assert set(batch.tensors) == {"global_crops", "local_crops", "path_draws"}


def test_two_objectives_share_crops_that_are_equal_and_no_others(make_config):
    one = {"first": SimclrConfig(), "second": SimclrConfig(temperature=0.5)}
    assert "two_views" in collator(make_config, "images", **one).plan.crops
    with pytest.raises(ConfigError, match="two ask for different crops 'two_views'"):
        collator(make_config, "images", **one | {"second": SimclrConfig(view=UNCHANGED)})
