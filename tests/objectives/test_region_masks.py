"""Masks of regions."""

import numpy as np
import pytest

from flava_ds.config import Config
from flava_ds.data.order import sample_seed
from flava_ds.data.plan import Draft
from flava_ds.data.regions import PackedRegions
from flava_ds.errors import ConfigError
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.region_masks import RegionMask


def draft_of(lengths) -> Draft:
    lengths = np.array(lengths)
    boxes = np.zeros((lengths.sum(), 4), dtype=np.float32)
    regions = PackedRegions(features=boxes, boxes=boxes, classes=None, lengths=lengths)
    seeds = sample_seed(0, 0, 0, np.arange(len(lengths)))
    return Draft(seeds=seeds, matched=np.ones(len(lengths), dtype=bool), regions=regions)


@pytest.mark.parametrize(("probability", "hidden"), [(0.15, 1.0), (0.15, 0.9), (0.5, 0.0)])
def test_shares_are_those_asked_for_and_no_sample_goes_without(probability, hidden):
    draft = draft_of([37] * 300)
    found = RegionMask(probability, hidden)(draft)
    rows, position = found["region_masked_rows"], draft.regions.positions[found["region_masked_rows"]]
    assert position.min() > 0 and set(rows // 37) == set(range(300))
    assert len(rows) / (300 * 36) == pytest.approx(probability, abs=0.02)
    assert len(found["region_hidden_rows"]) / len(rows) == pytest.approx(hidden, abs=0.03)
    assert set(found["region_hidden_rows"]) <= set(rows) and (np.diff(rows) > 0).all()


def test_rare_masks_choose_any_region_and_a_whole_image_alone_has_none():
    draft = draft_of([4, 1] * 600)
    rows = RegionMask(1e-9, 1.0)(draft)["region_masked_rows"]
    assert np.array_equal(rows // 5, np.arange(600)), "one of each sample with more than the whole image"
    counts = np.bincount(rows % 5, minlength=5)
    assert counts[0] == counts[4] == 0 and counts[1:4].min() > 160
    assert not len(RegionMask(0.0, 1.0)(draft)["region_masked_rows"])


def test_a_model_without_regions_is_refused():
    config = Config(name="flava", objectives={"mrc": MaskedRegionClassesConfig()})
    with pytest.raises(ConfigError, match="objectives.mrc needs a model with `region_rows`"):
        config.objectives["mrc"].check("objectives.mrc", config)
