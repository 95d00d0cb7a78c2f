"""The closed form against torch's own count of the real model's products."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from sample_batches import denominators, make_batch, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.batch import Kind
from flava_ds.config import GlobalContrastiveConfig, ImageTextMatchingConfig, MaskedTextConfig, ObjectivesConfig
from flava_ds.training.pretraining import build_pretraining
from flava_ds.watching.flops import forward_flops, measure_gemm_rate, step_flops

REDUCED = ObjectivesConfig(global_contrastive=GlobalContrastiveConfig(weight=0.0), itm=ImageTextMatchingConfig(weight=0.0))
CONTRASTIVE_ONLY = ObjectivesConfig(
    mmm_text=MaskedTextConfig(weight=0.0),
    mmm_image=dataclasses.replace(ObjectivesConfig().mmm_image, weight=0.0),
    itm=ImageTextMatchingConfig(weight=0.0),
)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("objectives", [ObjectivesConfig(), REDUCED, CONTRASTIVE_ONLY], ids=["all", "no contrastive", "contrastive"])
def test_closed_form_matches_the_flop_counter(kind, objectives):
    """Equal lengths and plain attention, so that the counter sees every product; the similarity matrix is not ours to count."""
    config = tiny_config(objectives=objectives)
    module, batch = build_pretraining(config), make_batch(kind, config, size=6, lengths=(8,) * 6)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(batch, denominators(module, batch))
    counted = counter.get_total_flops()
    expected = forward_flops(config, batch)
    assert counted > 0
    assert expected == pytest.approx(counted, rel=2e-3), (expected, counted)
    assert step_flops(config, batch) == 3 * expected


def test_the_first_of_two_contrastive_passes_costs_the_clean_encoders_alone():
    """Whatever else the step trains on: nothing masked or fused runs for the features."""
    config = tiny_config()
    module, batch = build_pretraining(config), make_batch(Kind.PAIR, config, size=6, lengths=(8,) * 6)
    for some in (batch, dataclasses.replace(batch, masked=batch)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            module(some, None)
        assert counter.get_total_flops() == pytest.approx(forward_flops(tiny_config(objectives=CONTRASTIVE_ONLY), batch), rel=2e-3)


def test_longer_texts_cost_more_than_in_proportion():
    config = tiny_config()
    short, long = (forward_flops(config, make_batch(Kind.TEXT, config, size=2, lengths=(n, n))) for n in (8, 16))
    assert long > 2 * short * 0.9


def test_gemm_rate_is_a_rate():
    assert measure_gemm_rate(torch.device("cpu"), torch.float32, size=64, repeats=2) > 1e6
