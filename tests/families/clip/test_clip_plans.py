"""Which patches CLIP's training leaves out."""

import dataclasses

import numpy as np

from flava_ds.data.plan import Draft
from flava_ds.families.clip.plans import PresentRows, plan
from flava_ds.recipes import resolve


def test_patches_depend_on_the_sample_alone_and_all_are_as_likely():
    seeds = np.arange(3000, dtype=np.uint64)
    draft = Draft(seeds=seeds, matched=np.ones(3000, dtype=bool))
    rows = PresentRows(9, 4)(draft)["present_rows"]
    assert rows.shape == (3000, 5) and (rows[:, 0] == 0).all() and (np.diff(rows) > 0).all()
    assert np.array_equal(rows[7:9], PresentRows(9, 4)(draft.at(np.array([7, 8])))["present_rows"])
    shares = np.bincount(rows.ravel(), minlength=10)[1:] / 3000
    assert np.abs(shares - 4 / 9).max() < 5 * (4 / 9 * 5 / 9 / 3000) ** 0.5


def test_only_dropped_patches_are_drawn():
    config = resolve("demo_clip", [])
    assert plan(config, config.data.sources["pair"]).corruptions == ()
    shape = dataclasses.replace(config.model.image, patch_dropout=0.999)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=shape))
    [drawn] = plan(config, config.data.sources["pair"]).corruptions
    assert drawn == PresentRows(shape.num_patches, 1)
