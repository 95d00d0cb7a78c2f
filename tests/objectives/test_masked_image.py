"""Patch mask statistics within the bounds of the published masks, and the rules that hold for every draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flava_ds.data.order import sample_seed
from flava_ds.objectives.masked_image import MaskedImageConfig, mask_patches


def seeds(n, seed=0):
    return sample_seed(seed, 0, 0, np.arange(n))


def test_patch_counts_are_those_of_the_published_generator():
    """Published, over 20,000 draws: mean 74.5, exactly 75 in 67 %, minimum 64."""
    counts = mask_patches(seeds(5000), 14, MaskedImageConfig()).sum(1)
    assert abs(counts.mean() - 74.5) < 0.1
    assert counts.max() == 75 and 60 <= counts.min() <= 70
    assert abs((counts == 75).mean() - 0.67) < 4 * (0.67 * 0.33 / 5000) ** 0.5


def test_any_share_is_the_cosine_of_a_uniform_number_and_never_none():
    """P(share <= s) = 1 - 2 / pi * arccos(s); of 16 patches, between 1 and 16."""
    draws, config = seeds(4000), MaskedImageConfig(masking="any_share")
    mask = mask_patches(draws, 4, config)
    counts = mask.sum(1)
    assert (counts.min(), counts.max()) == (1, 16)
    for most in (1, 4, 8, 12, 15):
        expected = 1 - 2 / np.pi * np.arccos(most / 16)
        assert abs((counts <= most).mean() - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5
    assert abs(mask.mean(0) - counts.mean() / 16).max() < 0.03, "every place alike"
    assert np.array_equal(mask_patches(draws[7:9], 4, config), mask[7:9])


def scalar_mask(draws, grid, config):
    """Algorithm 1 of BEiT written out for one sample."""
    mask, masked = np.zeros((grid, grid), dtype=bool), 0
    while masked < config.num_masked_patches:
        for _ in range(config.attempts_per_block):
            area, ratio, row, column = next(draws)
            left = config.num_masked_patches - masked
            area = config.min_patches_per_block + area * (left - config.min_patches_per_block)
            aspect = np.exp(np.log(config.min_aspect_ratio) * (1 - 2 * ratio))
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if height >= grid or width >= grid:
                continue
            top, start = int(row * (grid - height + 1)), int(column * (grid - width + 1))
            block = mask[top : top + height, start : start + width]
            if 0 < (gain := (~block).sum()) <= left:
                block[:] = True
                masked += gain
                break
        else:
            break
    return mask.ravel()


@pytest.mark.parametrize(("grid", "limit", "smallest"), [(14, 75, 16), (6, 14, 4), (4, 6, 2), (3, 9, 1)])
def test_all_samples_together_equal_the_algorithm_one_by_one(grid, limit, smallest):
    from flava_ds.data.order import uniforms

    config = MaskedImageConfig(num_masked_patches=limit, min_patches_per_block=smallest)
    together = mask_patches(seeds(40), grid, config)
    for seed, mask in zip(seeds(40), together, strict=True):
        draws = iter(uniforms(np.array([seed]), 4000, stream=11).reshape(-1, 4))
        assert np.array_equal(mask, scalar_mask(draws, grid, config))
    assert np.array_equal(mask_patches(seeds(40)[5:9], grid, config), together[5:9])


def test_every_patch_is_masked_about_as_often_as_its_mirror_image():
    share = mask_patches(seeds(4000), 14, MaskedImageConfig()).reshape(-1, 14, 14).mean(0)
    for mirrored in (share[::-1], share[:, ::-1], share.T):
        assert np.abs(share - mirrored).max() < 5 * (2 * 0.25 / 4000) ** 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 80), st.integers(1, 20), st.integers(0, 9))
def test_the_limit_holds_and_the_search_ends_for_every_configuration(grid, limit, smallest, seed):
    mask = mask_patches(
        seeds(8, seed), grid, MaskedImageConfig(num_masked_patches=limit, min_patches_per_block=smallest)
    )
    assert mask.shape == (8, grid * grid) and mask.sum(1).max() <= limit
