"""SimVLM against torch's layers, what each token and patch moves, its counts and what it refuses.

There is no reference implementation: those in public have a mask or a loss of another model.
"""

import dataclasses
import itertools
import math

import flava_kernels.flops  # noqa: F401  registers the formulas
import numpy as np
import pytest
import torch
from families.bert.bert_peers import randomize
from families.family_checks import check_decay, step, texts_of
from families.simvlm.simvlm_toys import OBJECTIVES, make_batch, tiny_config, tiny_model
from layers.torch_layers import decoder_layer, encoder_layer
from told import largest
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config.checks import check_objectives
from flava_ds.errors import ConfigError
from flava_ds.families.flava.views import View
from flava_ds.families.simvlm.capabilities import SimvlmPart
from flava_ds.families.simvlm.config import SimvlmConfig
from flava_ds.families.simvlm.model import Simvlm, split
from flava_ds.families.simvlm.task import build_task
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig


@pytest.fixture(scope="module")
def task():
    return randomize(build_task(tiny_config())).double()


@pytest.mark.parametrize("kind", ["pair", "text"])
def test_torchs_layers_agree(task, kind, told):
    """The whole model sample by sample, with torch's transformer layers and no packing: the loss."""
    batch, model = make_batch(kind=kind), task.model
    patches = model.embed_images(batch["pixel_values"]) if kind == "pair" else [None] * batch.size
    bounds, total = batch["suffix_cu_seqlens"], 0.0
    for text, image, count in zip(texts_of(batch), patches, bounds.diff().tolist(), strict=True):
        ids, cut = torch.from_numpy(text), len(text) - count
        read = model.words(ids[:cut]) + model.prefix_positions[:cut]
        read = (read if image is None else torch.cat([image, read]))[None]
        for block in model.encoder.blocks:
            read = encoder_layer(block)(read)
        read = nn.functional.layer_norm(read, (24,), *model.encoder_norm.parameters(), 1e-6)
        written = (model.words(ids[cut - 1 : -1]) + model.suffix_positions[:count])[None]
        causal = torch.ones(count, count, dtype=torch.bool).triu(1)
        for block in model.decoder.blocks:
            written = decoder_layer(block)(written, read, tgt_mask=causal)
        written = nn.functional.layer_norm(written[0], (24,), *model.decoder_norm.parameters(), 1e-6)
        logits = written @ model.words.weight.T
        total += nn.functional.cross_entropy(logits, ids[cut:], reduction="sum")
    [loss] = task.losses(batch).values()
    assert loss.count == int(bounds[-1])
    torch.testing.assert_close(loss.sum, total)
    told.parity("simvlm", "torch's encoder and decoder layers, loss", total.dtype, 1e-7, 1e-7)
    told.output(largest(loss.sum, total))


def states(task, batch, patches=None):
    """The decoder's rows of a batch, sample by sample."""
    prefix, suffix = split(batch)
    hidden = task.model.write(task.model.read(prefix, patches), suffix).last_hidden_state()
    return hidden.split(batch["suffix_cu_seqlens"].diff().tolist())


def test_tokens_move_nothing_before_them_and_prefix_and_patches_move_everything(task):
    batch = make_batch((9, 9, 9, 9))
    patches = task.model.embed_images(batch["pixel_values"]).detach()
    before = states(task, batch, patches)
    of_suffix = batch["suffix_cu_seqlens"]
    length = int(of_suffix.diff()[1])
    assert 2 <= length <= 7, "has a prefix of several tokens, and several to write"
    token = int(batch["suffix_rows"][of_suffix[1] + 1])
    for row, first in ((token, 1), (9, 0), (10, 0)):
        ids = batch["input_ids"].clone()
        ids[row] = 103 + (ids[row] - 102) % 97
        after = states(task, batch.having(input_ids=ids), patches)
        moved = (after[1] != before[1]).any(1).tolist()
        assert moved == [place >= first for place in range(length)], row
        assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    for patch in range(4):
        other = patches.clone()
        other[1, patch] += 1
        after = states(task, batch, other)
        assert (after[1] != before[1]).any(1).all() and torch.equal(after[0], before[0])


def test_probabilities_of_all_texts_sum_to_one(task):
    """Of all texts of three tokens, of which the first is given; beside an image and alone."""
    small = tiny_config()
    text = dataclasses.replace(small.model.text, vocab_size=6)
    small = dataclasses.replace(small, model=dataclasses.replace(small.model, text=text))
    own = randomize(build_task(small)).double().eval()
    part = SimvlmPart(own.model)
    texts = [np.array([1, *rest]) for rest in itertools.product(range(6), repeat=2)]
    pixels = make_batch()["pixel_values"][:1].expand(36, -1, -1, -1)
    with torch.no_grad():
        for patches in (part.patches(pixels), None):
            memory = own.model.read(part.starts(texts), patches)
            assert float(part.log_likelihoods(memory, texts).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_first_losses_are_those_of_guessing():
    task = build_task(tiny_config())
    for kind in ("pair", "text"):
        [loss] = task.losses(make_batch((12,) * 8, kind)).values()
        assert float(loss.sum.detach()) / loss.count == pytest.approx(math.log(200), abs=0.1)


def test_parameters_of_base():
    with torch.device("meta"):
        model = Simvlm(SimvlmConfig())
    found = {name: sum(own.numel() for own in part.parameters()) for name, part in model.named_children()}
    assert found["image_tower"] == 27_535_424, "ResNet-101's stem and three stages"
    assert sum(own.numel() for own in model.parameters()) == 251_921_216


def test_every_parameter_gets_a_gradient_from_the_kinds_that_say_so():
    for kind in ("pair", "text"):
        task = randomize(build_task(tiny_config()))
        step(task, make_batch(kind=kind)).backward()
        for name, kinds in task.users().items():
            moved = task.get_parameter(name).grad is not None
            assert moved == (kind in kinds), name


@pytest.mark.parametrize("kind", ["pair", "text"])
def test_work_is_what_torch_counts(task, kind):
    """On texts that are cut alike, where nothing is padded; torch counts both halves of causal scores."""
    batch = make_batch((8,) * 4, kind)
    starts = 8 * torch.arange(4)[:, None]
    rows = {"prefix_rows": (starts + torch.arange(4)).flatten()}
    rows["suffix_rows"] = (starts + torch.arange(3, 7)).flatten()
    batch = batch.having(**rows, suffix_cu_seqlens=(4 * torch.arange(5)).int())
    batch = dataclasses.replace(batch, numbers={"max_seqlen": 5})
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(task, batch)
    unseen = 2 * 4 * 24 * 4 * (4 * 3 // 2)
    listed = sum(part.flops for part in task.passes(batch))
    assert counter.get_total_flops() - listed in (0, unseen)
    assert task.flops(batch) == 3 * listed


def test_only_gains_and_biases_are_exempt_from_decay():
    optimizer = AdamWConfig(weight_decay=0.01, decay_norm_and_bias=False)
    check_decay(build_task(tiny_config()), optimizer, lambda _, own: own.ndim == 1)


def test_positions_of_larger_images_are_interpolated(task):
    model, pixels = task.model.eval(), torch.zeros(2, 3, 32, 16, dtype=torch.uint8)
    assert model.embed_images(pixels).shape == (2, 8, 24)
    with pytest.raises(ValueError, match=r"\(20, 16\), no multiples of 8"):
        model.embed_images(pixels[:, :, :20])
    task.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": dataclasses.replace(tiny_model().decoder, hidden_size=48)}, "decoder.hidden_size is 48"),
        ({"image": dataclasses.replace(tiny_model().image, image_size=20)}, "20 is not divisible by 8"),
        ({"image": dataclasses.replace(tiny_model().image, blocks=())}, "model.image.blocks is empty"),
        (
            {"encoder": dataclasses.replace(tiny_model().encoder, num_attention_heads=5)},
            "model.encoder: hidd",
        ),
    ],
)
def test_models_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(**changes).check(tiny_config())


@pytest.mark.parametrize("objective", [GlobalContrastiveConfig(), MaskedTextConfig()])
def test_objectives_that_it_cannot_serve_are_refused(objective):
    config = tiny_config(objectives={"other": objective})
    with pytest.raises(ConfigError, match="reads the view .* 'simvlm' has only suffix and text_suffix"):
        build_task(config)


def test_families_without_a_decoder_refuse_its_objectives():
    config = dataclasses.replace(tiny_config(), model=build_flava())
    assert config.model.views == tuple(View)
    message = f"the view 'suffix', but the family 'flava' has only {' and '.join(View)}; remove"
    with pytest.raises(ConfigError, match=message):
        check_objectives(dataclasses.replace(config, objectives=OBJECTIVES))


def build_flava():
    from flava_ds.recipes import RECIPES

    return RECIPES["demo"]().model
