"""Prefetch stays within its memory: the estimate is an upper bound of real batches, and not a loose one."""

from dataclasses import replace

import pytest

from flava_ds.config import UNCHANGED
from flava_ds.data.loader import StepLoader
from flava_ds.data.prefetch import prefetch_batches, sample_bytes
from flava_ds.errors import ConfigError


def size_of(batch) -> int:
    """Bytes of a batch's tensors."""
    return sum(tensor.nbytes for tensor in batch.tensors.values())


def largest(config, kind):
    return max(size_of(batch) for (batch,) in StepLoader(config) if batch.source == kind)


@pytest.mark.parametrize("share", [1.0, 0.25, 0.6])
def test_no_batch_is_larger_than_its_estimate_which_is_within_a_third_for_pixels(make_config, share):
    config = make_config()
    pairs = replace(config.data.sources["pairs"], masked_share=share, max_tokens=8)
    config = config.with_sources(config.data.sources | {"pairs": pairs})
    for (name, source), tight in zip(config.data.sources.items(), (1.35, 1.35, 10.0), strict=True):
        found, bound = largest(config, name), sample_bytes(config, source) * config.global_batch_size(name)
        assert found <= bound <= tight * found, name


def test_precomputed_codes_count_instead_of_the_codebooks_view(make_config):
    images = make_config().data.sources["images"]
    coded = replace(images, image_codes_key="codes.npy", transform=UNCHANGED)
    assert sample_bytes(make_config(), images) - sample_bytes(make_config(), coded) == 3 * 32**2 - 8 * 16


def test_large_batches_are_prefetched_in_smaller_number_or_refused(make_config, caplog):
    config = make_config(data={"num_workers": 2, "prefetch_batches": 4, "prefetch_mib": 1})
    each = sample_bytes(config, config.data.sources["pairs"])
    assert each == max(sample_bytes(config, source) for source in config.data.sources.values())
    for batches, samples in ((4, 2**20 // (8 * each)), (3, 2**20 // (6 * each)), (1, 2**20 // (2 * each))):
        assert prefetch_batches(config, {"pairs": samples, "images": 1, "text": 1}) == batches
    with pytest.raises(ConfigError, match="data.prefetch_mib 1 does not hold a batch of 'pairs'"):
        prefetch_batches(config, {"pairs": 2**20 // each, "images": 1, "text": 1})
    assert prefetch_batches(replace(config, data=replace(config.data, num_workers=0)), {"pairs": 2**20}) == 4
