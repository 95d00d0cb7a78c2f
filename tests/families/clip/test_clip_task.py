"""CLIP with its objective: gradients, counts of work, and what it refuses."""

import dataclasses
import math

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from families.clip.peers import make_batch, tiny_config, without_patches
from families.family_checks import check_decay, check_recomputation, step
from sample_batches import denominators
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError
from flava_ds.families.clip.task import build_task
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig


def gradients(task, batch):
    step(task, batch).backward()
    return {name: parameter.grad for name, parameter in task.named_parameters()}


def test_every_parameter_gets_a_gradient_and_says_so():
    config = tiny_config()
    task = build_task(config)
    assert all(kinds == {"pair"} for kinds in task.users().values())
    assert all(
        gradient is not None and gradient.abs().max() > 0
        for gradient in gradients(task, make_batch(config)).values()
    )
    assert task.kinds == ("pair",) and list(task.encoders()) == ["image_encoder", "text_encoder"]


def test_the_first_loss_is_that_of_guessing():
    config = tiny_config()
    batch = make_batch(config, (7,) * 32)
    [loss] = build_task(config).losses(batch).values()
    assert loss.count == 32
    assert float(loss.sum.detach()) / 32 == pytest.approx(math.log(32), abs=2.5)


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    config = tiny_config()
    task, whole = build_task(config).double(), make_batch(config, (5, 12, 2, 9))
    expected = gradients(task, whole)
    parts = []
    for start, tokens in ((0, slice(0, 17)), (2, slice(17, 28))):
        lengths = whole["cu_seqlens"].diff()[start : start + 2]
        tensors = {
            "pixel_values": whole["pixel_values"][start : start + 2],
            "input_ids": whole["input_ids"][tokens],
            "cu_seqlens": torch.tensor([0, *lengths.cumsum(0).tolist()]).int(),
            "matched_rows": torch.arange(2),
        }
        parts.append(
            dataclasses.replace(whole, size=2, tensors=tensors, numbers={"max_seqlen": int(lengths.max())})
        )
    again = build_task(config).double()
    [(name, objective)] = again.pooled("pair").items()
    with torch.no_grad():
        features = [again("features", part)["global_contrastive"] for part in parts]
    pulls = objective.step_gradients(name, features)
    for part, pull in zip(parts, pulls, strict=True):
        again(
            "step", part, {"global_contrastive": torch.tensor(4.0)}, {"global_contrastive": pull}
        ).loss.backward()
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-14, msg=name)


def test_activation_checkpointing_changes_no_gradient():
    config = tiny_config()
    check_recomputation(build_task, config, lambda task: step(task, make_batch(config)))


@pytest.mark.parametrize(("activation", "dropped"), [("gelu", 0.5), ("quick_gelu", 0.0)])
def test_closed_form_matches_the_flop_counter(activation, dropped):
    """Equal lengths and plain attention, so that the counter sees every product; it counts all of a causal
    text's scores.
    """
    config = tiny_config(activation)
    task, length, size = build_task(config), 8, 6
    batch = make_batch(config, (length,) * size)
    batch = without_patches(batch, config, dropped) if dropped else batch
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        task("step", batch, denominators(task, batch))
    text = config.model.text
    unseen = 4 * size * (length**2 - length * (length + 1) // 2) * text.hidden_size * text.num_hidden_layers
    similarity = 2 * size * size * config.model.projection_dim
    expected = sum(part.flops for part in task.passes(batch))
    assert expected + similarity + unseen == pytest.approx(counter.get_total_flops(), rel=2e-3)
    assert task.flops(batch) == 3 * expected


def test_tables_are_decayed_but_gains_biases_and_vectors_are_not():
    """As published: all weights that are not gains or biases."""
    optimizer = AdamWConfig(weight_decay=0.2, decay_norm_and_bias=False)
    plain = ("bias", "norm.weight", "cls_token", "logit_scale")
    check_decay(build_task(tiny_config()), optimizer, lambda name, _: name.endswith(plain))


@pytest.mark.parametrize(
    "objective", [ImageTextMatchingConfig(), MultimodalMaskedTextConfig(), MultimodalMaskedImageConfig()]
)
def test_objectives_over_other_views_are_refused(objective):
    config = tiny_config(objectives={"other": objective})
    with pytest.raises(
        ConfigError, match="the view 'multimodal_masked', but the family 'clip' has only image and text"
    ):
        build_task(config)
    with pytest.raises(ConfigError, match=r"^objectives\.other reads the view 'multimodal_masked', but"):
        check_objectives(config)
