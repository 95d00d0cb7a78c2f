"""The closed form against torch's own count of the real model's products."""

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from sample_batches import denominators, make_batch, masked_share_of, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig

REDUCED = flava_objectives(
    global_contrastive=GlobalContrastiveConfig(weight=0.0), itm=ImageTextMatchingConfig(weight=0.0)
)
CONTRASTIVE_ONLY = flava_objectives(
    mmm_text=MultimodalMaskedTextConfig(weight=0.0),
    mmm_image=MultimodalMaskedImageConfig(weight=0.0),
    itm=ImageTextMatchingConfig(weight=0.0),
)


def forward_flops(task, batch) -> float:
    """The FLOPs of the forward pass, by the task's own list."""
    return sum(part.flops for part in task.passes(batch))


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "objectives",
    [flava_objectives(), REDUCED, CONTRASTIVE_ONLY],
    ids=["all", "no contrastive", "contrastive"],
)
def test_closed_form_matches_the_flop_counter(kind, objectives):
    """Equal lengths and plain attention, so that the counter sees every product; the similarity matrix is not
    ours to count.
    """
    config = tiny_config(objectives=objectives)
    module, batch = build_task(config), make_batch(kind, config, size=6, lengths=(8,) * 6)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module("step", batch, denominators(module, batch))
    counted = counter.get_total_flops()
    expected = forward_flops(module, batch)
    assert counted > 0
    assert expected == pytest.approx(counted, rel=2e-3), (expected, counted)
    assert module.flops(batch) == 3 * expected


def test_a_masked_share_without_contrast_embeds_no_other_images():
    config = tiny_config(objectives=REDUCED)
    module, batch = build_task(config), make_batch(Kind.PAIR, config, size=6, lengths=(8,) * 6)
    share = make_batch(Kind.PAIR, config, size=2, lengths=(8,) * 2)
    batch = masked_share_of(batch, (1, 4), share)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module("step", batch, denominators(module, batch))
    assert forward_flops(module, batch) == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_the_first_of_two_contrastive_passes_costs_the_clean_encoders_alone():
    """Whatever else the step trains on: nothing masked or fused runs for the features."""
    config = tiny_config()
    module, batch = build_task(config), make_batch(Kind.PAIR, config, size=6, lengths=(8,) * 6)
    alone = build_task(tiny_config(objectives=CONTRASTIVE_ONLY))
    for some in (batch, masked_share_of(batch, tuple(range(6)), batch)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            module("features", some)
        assert counter.get_total_flops() == pytest.approx(forward_flops(alone, batch), rel=2e-3)


def test_longer_texts_cost_more_than_in_proportion():
    config = tiny_config()
    task = build_task(config)
    short, long = (
        forward_flops(task, make_batch(Kind.TEXT, config, size=2, lengths=(n, n))) for n in (8, 16)
    )
    assert long > 2 * short * 0.9
