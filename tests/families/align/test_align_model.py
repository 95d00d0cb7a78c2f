"""ALIGN against transformers' AlignModel on random weights, its counts, its files and what it refuses."""

import dataclasses
import functools
import math

import flava_kernels.flops  # noqa: F401  registers the formulas
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.align.align_peers import (
    inputs_of,
    make_batch,
    our_model,
    own_tensors,
    their_align,
    tiny_config,
)
from families.bert.bert_peers import difference, randomize
from families.family_checks import step, with_words
from sample_batches import denominators
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds import config as configuration
from flava_ds.config import SourceConfig
from flava_ds.data.plan import Draft
from flava_ds.errors import CheckpointError, ConfigError
from flava_ds.families.align.config import AlignConfig
from flava_ds.families.align.hf import LAYOUTS, entries
from flava_ds.families.align.model import Align
from flava_ds.families.align.plans import BlockPaths, block_paths
from flava_ds.families.align.task import build_task
from flava_ds.hf import foreign as their_files
from flava_ds.layers.efficientnet import EfficientNet
from flava_ds.layouts import to_ours
from flava_ds.objectives.dino import DinoConfig
from flava_ds.objectives.global_contrastive import smoothing
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.optimizers.base import parameter_groups
from flava_ds.recipes.align_base import align_base
from flava_ds.recipes.demo_align import demo_align


def gradients_apart(task, theirs, config, prefix: str = "") -> dict[str, float]:
    """How far each of our gradients is from theirs, over the largest of theirs; where that is nothing but
    rounding, as of a bias before a norm, over a thousandth of the largest of all.
    """
    found = {name: own.grad for name, own in theirs.named_parameters() if own.grad is not None}
    ours = {name: own.grad for name, own in task.named_parameters() if name.startswith(prefix)}
    table = [entry for entry in entries(config.model) if entry.ours in ours]
    named = {name: found[name] for entry in table for name in entry.theirs}
    expected = to_ours(named, table, "their gradients")
    floor = 1e-3 * max(float(own.abs().max()) for own in expected.values())
    return {
        name: float((ours[name] - own).abs().max()) / max(float(own.abs().max()), floor)
        for name, own in expected.items()
    }


def test_transformers_agree(told):
    """Features, loss with smoothed labels, and every gradient, in evaluation."""
    config, batch = tiny_config(), make_batch()
    told.parity("align", "AlignModel", torch.float32, 1e-5, 3e-5)
    theirs = their_align(config).eval()
    task = our_model(config, theirs).eval()
    inputs = inputs_of(batch)
    inputs["pixel_values"] = inputs["pixel_values"].float()
    output = theirs(**inputs, return_loss=True)
    encoded = task.model.encode(batch, ("image", "text"))
    rows = {view: own.rows(task.model.first_rows(view, batch)) for view, own in encoded.items()}
    features = task.objectives["global_contrastive"].features(task.model, rows, batch).samples
    assert told.output(difference(features["image"], output.image_embeds)) <= 1e-5
    assert told.output(difference(features["text"], output.text_embeds)) <= 1e-5
    apart = (output.image_embeds[:, None] - output.image_embeds).norm(dim=2)
    assert float(apart.detach().max()) > 0.03, "images differ in what is compared"
    [loss] = task.losses(batch).values()
    assert told.output(difference(loss.sum / loss.count, output.loss)) <= 1e-5
    (loss.sum / loss.count).backward()
    output.loss.backward()
    found = gradients_apart(task, theirs, config)
    told.gradients(found, 3e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_image_tower_is_theirs_in_fp64(training, told):
    """In training, one group is their batch. Their text tower takes its softmax in fp32."""
    config, batch = tiny_config(), make_batch()
    told.parity("align", "AlignModel, image tower", torch.float64, 1e-12, 1e-10)
    theirs = their_align(config).double().train(training)
    task = our_model(config, theirs).train(training)
    pixels = inputs_of(batch)["pixel_values"]
    found, expected = task.model.image_features(pixels), theirs.vision_model(pixels).pooler_output
    assert told.output(difference(found, expected)) <= 1e-12
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).double()
    for own in (found, expected):
        (own * weights).sum().backward()
    apart = gradients_apart(task, theirs, config, "model.image_encoder.")
    assert len(apart) > 80
    told.gradients(apart, 1e-10)


def test_parameter_counts_are_the_public_models_without_the_pooler_that_nothing_reads():
    with torch.device("meta"):
        model = Align(AlignConfig())
    counts = {name: sum(own.numel() for own in part.parameters()) for name, part in model.named_children()}
    assert counts == {
        "image_encoder": 62_143_440,
        "text_encoder": 109_482_240 - 590_592,
        "text_projection": 492_160,
    }
    assert sum(own.numel() for own in model.parameters()) == 172_117_841 - 590_592
    assert AlignConfig().projection_dim == 640 == model.image_encoder.channels


@pytest.mark.parametrize("size", [64, 33])
def test_work_is_that_of_the_convolutions(size):
    """Also where edges are odd, as in 289 pixels, and rounded up."""
    network = EfficientNet(0.35, 1.0, (0.5,) * 3, (0.5,) * 3, 2).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found = network(torch.zeros(3, 3, size, size))
    assert 3 * network.flops(size) == counter.get_total_flops()
    assert found.shape[-1] == math.ceil(size / 32)


def test_work_of_a_step_is_what_torch_counts():
    config, batch = tiny_config(), make_batch((8,) * 4)
    task = build_task(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        task("step", batch, denominators(task, batch))
    counted = counter.get_total_flops()
    assert sum(part.flops for part in task.passes(batch)) == pytest.approx(counted, rel=5e-3)


def test_every_parameter_gets_a_gradient():
    task = randomize(build_task(tiny_config()))
    with torch.no_grad():
        task.model.temperature.fill_(0.5)
    batch = make_batch()
    step(task, batch).backward()
    assert all(
        task.get_parameter(name).grad is not None and kinds == {"pair"}
        for name, kinds in task.users().items()
    )


def test_first_loss_is_that_of_guessing():
    """At a temperature of 1; the recipe's weight of 2 makes it the sum of both directions, 2 ln g."""
    task = build_task(tiny_config())
    [loss] = task.losses(make_batch((7,) * 8)).values()
    assert float(loss.sum.detach()) / loss.count == pytest.approx(math.log(8), abs=0.2)


def test_skipped_blocks_add_nothing_and_depend_on_the_seed():
    config = tiny_config()
    task, batch = build_task(config).train(), make_batch()
    plain = task.model.image_features(batch["pixel_values"])
    blocks = len(task.model.image_encoder.blocks)
    torch.testing.assert_close(task.model.image_features(batch["pixel_values"], torch.ones(4, blocks)), plain)
    [adding] = [number for number, own in enumerate(task.model.image_encoder.blocks) if own.adds][:1]
    skipping = torch.ones(4, blocks).index_fill(1, torch.tensor([adding]), 0.0)
    found = task.model.image_features(batch["pixel_values"], skipping)
    left = task.model.image_encoder.blocks.pop(adding)
    torch.testing.assert_close(task.model.image_features(batch["pixel_values"]), found)
    assert left.adds and not torch.allclose(found, plain)

    seeds = np.arange(2000, dtype=np.uint64)
    draw = functools.partial(Draft, matched=np.ones(1, dtype=bool))
    paths = BlockPaths(10, 0.5)(draw(seeds=seeds))["block_paths"]
    assert np.array_equal(paths[7:9], BlockPaths(10, 0.5)(draw(seeds=seeds[7:9]))["block_paths"])
    assert (paths[:, 0] == 1).all()
    assert (paths[:, 9] == 0).mean() == pytest.approx(0.45, abs=0.06)
    assert paths.mean(0) == pytest.approx(1, abs=0.1)
    assert block_paths(dataclasses.replace(config.model.image, drop_path=0.0)) == ()
    assert block_paths(AlignConfig().image)[0].blocks == 55


def test_smoothed_labels_are_torchs():
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1).requires_grad_() for _ in "ab")
    scale, matched = (
        torch.tensor([1.3], dtype=torch.float64, requires_grad=True),
        torch.tensor([1.0] * 4 + [0, 1]),
    )
    logits, labels = scale.exp() * image @ text.T, torch.arange(6)

    def cross_entropy(smoothed: float):
        rows = [
            F.cross_entropy(own, labels, label_smoothing=smoothed, reduction="none")
            for own in (logits, logits.T)
        ]
        return (matched * sum(rows) / 2).sum()

    found = 0.1 * smoothing(image, text, scale, matched)
    expected = cross_entropy(0.1) - cross_entropy(0.0)
    torch.testing.assert_close(found, expected)
    inputs = (image, text, scale)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def config(tmp_path):
    """The small one, with a vocabulary of its size."""
    config = with_words(tiny_config(), tmp_path)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, initializer_range=0.05))


def test_an_exported_folder_opens_in_transformers_and_comes_back(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    task = our_model(config, their_align(config)).eval()
    their_files.export(config, task.state_dict(), tmp_path / "out")
    theirs, report = transformers.AlignModel.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    batch = make_batch()
    inputs = inputs_of(batch)
    with torch.no_grad():
        loss = theirs.eval()(
            **inputs | {"pixel_values": inputs["pixel_values"].float()}, return_loss=True
        ).loss
        [ours] = task.losses(batch).values()
    assert difference(ours.sum / ours.count, loss) < 1e-5
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pixels.crop_size["height"] == 64
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    back = LAYOUTS.read(settings, tensors, "here")
    assert back.weights.keys() == task.state_dict().keys()
    assert all(torch.equal(back.weights[name], own) for name, own in task.state_dict().items())
    again = dataclasses.replace(back.model.image, norm_group=4, norm_momentum=0.99)
    assert dataclasses.replace(back.model, image=again) == config.model


def test_a_temperature_below_the_least_counts_as_it_and_can_rise_again(config):
    task = build_task(config)
    for value in (0.07, 1e-5, -0.3):
        task.model.temperature.data.fill_(value)
        task.model.temperature.grad = None
        task.model.logit_scale.sum().backward()
        used = max(value, 0.001)
        assert float(task.model.logit_scale.detach()) == pytest.approx(-math.log(used), rel=1e-6)
        assert float(task.model.temperature.grad) == pytest.approx(-1 / used, rel=1e-6)
    assert float(LAYOUTS.write(config, task.state_dict())[1]["temperature"]) == pytest.approx(0.001)


def test_the_recipes_steps_of_the_temperature_are_relative():
    task, optimizer = build_task(tiny_config()), align_base().optimizer
    lamb = optimizer.build(parameter_groups(task, task.users(), optimizer))
    task.model.temperature.data.fill_(0.0002)
    task.model.temperature.grad = torch.tensor([3.0])
    lamb.step()
    assert float(task.model.temperature.detach()) == pytest.approx(0.0002 * (1 - optimizer.lr), rel=1e-5)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_config", {"hidden_act": "relu"}, "hidden_act is 'relu'; only 'swish' is supported"),
        ("vision_config", {"image_size": [64, 32]}, r"image_size is \[64, 32\]; only squares"),
        ("vision_config", {"depth_coefficient": 2.0}, "tensor 'vision_model.encoder.blocks."),
        ("vision_config", {"width_coefficient": 2.0}, "projection_dim is 80, but its images have 640"),
        ("text_config", {"num_hidden_layers": 4}, "tensor 'text_model.encoder.layer."),
    ],
)
def test_what_does_not_fit_is_named(config, part, changes, message):
    settings, tensors = LAYOUTS.write(config, our_model(config, their_align(config)).state_dict())
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        LAYOUTS.read({**settings, part: settings[part] | changes}, tensors, "here")


def test_what_it_cannot_serve_is_refused():
    with pytest.raises(ConfigError, match="reads the view 'text_masked', but the family 'align' has only"):
        build_task(tiny_config(objectives={"mlm": MaskedTextConfig()}))
    with pytest.raises(ConfigError, match="objectives.dino reads image batches, which this model's family"):
        configuration.check(dataclasses.replace(demo_align(), objectives={"dino": DinoConfig()}))
    with pytest.raises(ConfigError, match="'pair': micro-batches of 8 samples are no whole groups of 16"):
        demo_align().micro_batch_size("pair", 16)
    config = tiny_config()
    sources = {"a": SourceConfig(kind="pair", shards="x", masked_share=0.5)}
    shared = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(ConfigError, match="source 'a': masked_share .* family 'align'"):
        config.model.check(shared)


def test_tensors_that_nothing_reads_are_dropped():
    theirs = their_align(tiny_config())
    dropped = theirs.state_dict().keys() - own_tensors(dict(theirs.state_dict())).keys()
    assert {name.rpartition(".")[2] for name in dropped} == {"num_batches_tracked", "weight", "bias"}
