"""What the meta device says of a recipe, against closed forms, published sizes and torch's own counter."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from sample_batches import denominators, make_batch, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.errors import ConfigError
from flava_ds.families.clip.model import Clip
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind
from flava_ds.recipes import RECIPES, resolve
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.measure import META, groups_of, kind_work, measure, parts_of, step_of
from flava_ds.scaling.trace import trace_step
from flava_ds.scaling.work import ModelWork


@pytest.fixture(scope="module")
def base() -> tuple[object, ModelWork]:
    """flava_base, measured once."""
    config = resolve("flava_base", [])
    return config, measure(config, lengths_of(config, None))


@pytest.mark.parametrize("name", ["demo_simclr", "demo_dino"])
def test_objectives_that_read_crops_are_measured(name):
    config = resolve(name, [])
    (source,) = config.drawn_sources
    kind = measure(config, {}, samples=4).kinds[source]
    crops = config.model.plan(config, config.drawn_sources[source]).crops.values()
    sent = sum(len(own.transforms) * 3 * own.size**2 for own in crops)
    assert kind.has_pictures and kind.batch_bytes.each >= sent > 0
    assert sum(own.flops.each for own in kind.operators) > 0


def test_parameters_are_the_published_model_s(base):
    _, work = base
    groups = {group.kinds: group.elements for group in work.groups}
    assert work.trainable == sum(groups.values()) == 302_087_287
    assert groups["image", "pair"] == 85_799_424, (
        "ViT-B/16 without its classifier: 85,798,656, and a mask token"
    )
    idle = groups["image",] + groups["text",]
    assert work.used_by("pair") == work.trainable - idle and work.used_by("text") == 132_956_730
    assert work.encoders["image_encoder"] == groups["image", "pair"]
    assert work.codebook == 53_786_240 and work.moments == 2


PUBLISHED = {
    "flava_base": 302_087_287,
    "clip_base": 149_620_737,
    "bert_base": 110_106_428,
    "vilt_base": 135_660_092,
    "albef_base": 209_937_725,
    "align_base": 171_527_249,
    "vinvl_base": 111_686_973,
    "vlbert_base": 114_493_051,
    "uniter_base": 112_938_887,
    "visualbert_base": 112_074_812,
    "unit_base": 200_438_396,
    "simvlm_base": 251_921_216,
    "lxmert_base": 211_958_396,
    "vilbert_base": 239_023_229,
    "dino_base": 109_134_169,
    "mim_base": 92_952_921,
    "mlm_base": 132_977_891,
}
"""What each recipe trains, objectives' heads included. The families' own tests derive the published models'
sizes in it from their papers and released weights."""


def test_a_plan_counts_every_parameter_of_every_recipe_once():
    """Against a walk over the modules of the task that training would build."""
    found = {}
    for name in RECIPES:
        config = resolve(name, [])
        with torch.device(META):
            task = config.model.build(config)
        walked = {id(own): own for module in task.modules() for own in module._parameters.values()}
        count = sum(own.numel() for own in walked.values() if own is not None and own.requires_grad)
        assert sum(group.elements for group in groups_of(task, config)) == count, name
        assert sum(sum(group.tensors) for group in groups_of(task, config)) == count, name
        assert sum(parts_of(task).values()) == count, name
        found[name] = count
    assert {name: count for name, count in found.items() if name.endswith("_base")} == PUBLISHED


def saved_of_image_step(d: int, f: int, h: int, layers: int, patches: int, edge: int, read: float, v: int):
    """Bytes that an image step of one picture keeps, and those that no picture adds, in bf16."""
    tokens = 1 + patches
    blocks = (layers - 1) * tokens * (16 * d + 4 * f + 4 * h + 16)
    last = tokens * (12 * d + 4 * h + 8) + read * (6 * d + 4 * f + 16)
    pixels = 2 * patches * 3 * edge**2
    head = read * (2 * d + 8) + read * (8 * d + 8)  # the final norm, then dense, GELU and norm
    return blocks + last + pixels + head, 2 * v * d


def test_saved_bytes_follow_the_closed_form_of_a_block(base):
    """Derived by hand from what each operator keeps; rows that the loss reads are about 73 of 196."""
    config, work = base
    image, kind = config.model.image, work.kinds["imagenet"]
    head = next(o for o in kind.operators if o.name == "linear_cross_entropy")
    shape = (image.hidden_size, image.intermediate_size, image.num_attention_heads, image.num_hidden_layers)
    each, fixed = saved_of_image_step(
        *shape, image.num_patches, image.patch_size, head.rows.each, config.codebook.vocab_size
    )
    assert kind.saved.each == pytest.approx(each, rel=1e-3)
    assert kind.saved.fixed == pytest.approx(fixed, rel=2e-2)


def test_recomputing_keeps_a_stream_and_a_branch_for_each_layer(base):
    config, kept = base
    training = dataclasses.replace(config.training, activation_checkpointing=True)
    config = dataclasses.replace(config, training=training)
    with torch.device(META):
        task = config.model.build(config)
    task.to(torch.bfloat16).train()
    lengths = lengths_of(config, None)
    work = kind_work(config, task, "text", lengths["text"], META, 32)
    layers, d = config.model.text.num_hidden_layers, config.model.text.hidden_size
    assert work.saved.each == pytest.approx(512 * layers * 4 * d, rel=0.05)
    assert work.peak.each > work.saved.each * 1.2, "one block's activations and gradients come on top"
    assert work.flops().each > 1.2 * kept.kinds["text"].flops().each, "the forward pass runs twice"
    assert work.model_flops.each == pytest.approx(kept.kinds["text"].model_flops.each, rel=1e-2)


def test_flops_are_those_of_the_family_and_of_torch_s_counter(base):
    """Ragged texts against the family's closed form; equal ones on real tensors against FlopCounterMode."""
    _, work = base
    for kind in work.kinds.values():
        forward = sum(o.flops.at(64, 0) * o.count for o in kind.operators if o.phase == "forward")
        heads = sum(o.flops.at(64) * o.count for o in kind.operators if o.name == "linear_cross_entropy")
        # a fused loss finishes two of its three products on the way forward
        assert forward - heads * 2 / 3 == pytest.approx(kind.model_flops.at(64) / 3, rel=5e-3), kind.source
    config = tiny_config()
    task, batch = build_task(config), make_batch(Kind.PAIR, config, size=6, lengths=(8,) * 6)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        task("step", batch, denominators(task, batch)).loss.backward()
    traced = trace_step(task, step_of(task, batch, torch.device("cpu")), batch.tensors.values(), 0.0)
    assert sum(call.flops for call in traced.calls) == pytest.approx(counter.get_total_flops(), rel=1e-2)


def test_live_bytes_are_what_the_tensors_take():
    """y = relu(x w) keeps y, and holds y and its gradient at most."""
    linear = torch.nn.Linear(256, 512, bias=False, device="meta")
    x = torch.zeros(1024, 256, device="meta")
    trace = trace_step(linear, lambda: linear(x).relu().sum(), [x], 0.0)
    y = 1024 * 512 * 4
    assert trace.saved == y
    assert y * 2 <= trace.peak <= 3 * y + 256 * 512 * 4
    assert trace.peak <= trace.peak_with_gradients <= trace.peak + 256 * 512 * 4
    matmuls = [call for call in trace.calls if call.product]
    assert [call.product for call in matmuls] == [(1024, 512, 256), (512, 256, 1024)]
    assert all(call.flops == 2 * 1024 * 512 * 256 for call in matmuls)


def test_clip_is_measured_by_the_same_code():
    config = resolve("clip_base", [])
    work = measure(config, lengths_of(config, None))
    assert work.trainable == 149_620_737, "CLIP ViT-B/16"
    assert set(work.kinds) == {"pairs"} and work.codebook == 0
    products = [o for o in work.kinds["pairs"].operators if o.flops.pair]
    assert {o.name for o in products} == {"info_nce_forward", "info_nce_backward"}


def test_a_family_that_reads_numbers_is_named_with_the_line(monkeypatch):
    def encode(self, batch, *_):
        return {"text": batch["cu_seqlens"].max().item()}

    monkeypatch.setattr(Clip, "encode", encode)
    config = resolve("demo_clip", [])
    line = encode.__code__.co_firstlineno + 1
    with pytest.raises(ConfigError, match=rf"test_measure.py:{line}: RuntimeError: Tensor.item"):
        measure(config, lengths_of(config, None))
