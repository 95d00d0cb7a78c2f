"""Parts of a model that keep their weights: what is still trained, what is refused, and what a step costs."""

from __future__ import annotations

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
from sample_batches import denominators, make_batch, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.errors import ConfigError
from flava_ds.families.flava.views import Kind
from flava_ds.preview import parameters
from flava_ds.recipes import resolve
from flava_ds.training.freezing import built

TOWERS = ("image_encoder", "text_encoder")


def freezing(*names: str):
    config = tiny_config()
    return dataclasses.replace(config, training=dataclasses.replace(config.training, frozen=names))


def gradients(config, kind):
    task, batch = built(config), make_batch(kind, config)
    task("step", batch, denominators(task, batch)).loss.backward()
    return {name: own.grad for name, own in task.named_parameters() if own.grad is not None}


@pytest.mark.parametrize("kind", [Kind.PAIR, Kind.IMAGE])
def test_what_is_not_frozen_gets_the_gradients_that_it_would_get_anyway(kind):
    expected, found = gradients(freezing(), kind), gradients(freezing(*TOWERS), kind)
    still = tuple(f"model.{name}." for name in TOWERS)
    assert found.keys() == {name for name in expected if not name.startswith(still)} < expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)
    users = built(freezing(*TOWERS)).users()
    assert found.keys() == {name for name, kinds in users.items() if kind in kinds}


@pytest.mark.parametrize("frozen", [(), TOWERS[:1], TOWERS, ("multimodal_encoder",)], ids=len)
def test_flops_leave_out_what_frozen_parts_do_not_compute(frozen):
    config = freezing(*frozen)
    task, batch = built(config), make_batch(Kind.PAIR, config, size=6, lengths=(8,) * 6)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        task("step", batch, denominators(task, batch)).loss.backward()
    assert task.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.04)


def test_a_run_says_what_is_frozen():
    told = parameters(built(freezing("image_encoder", "text_projection.bias")), {"pair"})
    trained, frozen = told.split("; frozen, beside these, ")
    assert "image_encoder" not in trained and "text_projection" in trained
    assert "image_encoder" in frozen and "text_projection 16)" in frozen


@pytest.mark.parametrize(
    ("recipe", "frozen", "error"),
    [
        ("demo_clip", ["image_encodr"], "has no part 'image_encodr'; did you mean 'image_encoder'"),
        ("demo_clip", ["image"], "the model has no part 'image'"),
        ("demo_clip", ["image_encoder.block.0"], "image_encoder has no part 'block.0'; .*transformer"),
        ("demo_clip", [*TOWERS, "image_projection", "text_projection", "logit_scale"], "nothing that obj"),
        ("demo_align", ["image_encoder"], "'image_encoder' has batch norms, e.g. image_encoder.stem_norm"),
        ("demo_align", ["image_encoder.stem_norm"], "'image_encoder.stem_norm' has batch norms"),
    ],
)
def test_what_cannot_be_frozen_is_refused(recipe, frozen, error):
    with pytest.raises(ConfigError, match=f"training.frozen.*{error}"):
        built(resolve(recipe, ["--training.frozen", *frozen]))
