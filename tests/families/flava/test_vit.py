"""Image encoders of other programs: DINO's, timm's and transformers' ViT, and BEiT."""

import argparse
import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from sample_batches import make_batch, tiny_config

from flava_ds.config import Config
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.image_encoder import ImageEncoder
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind, View
from flava_ds.families.flava.vit import vit_weights
from flava_ds.hf.convert import convert_folder
from flava_ds.hf.files import read_file

TINY = dict(
    image_size=12,
    patch_size=4,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=48,
)


def read_vit(path: Path, image: VisionEncoderConfig) -> dict[str, torch.Tensor]:
    """What `convert` does with a file that holds a ViT."""
    return vit_weights(read_file(path, nested=("teacher", "model")), image, str(path))


@pytest.fixture(scope="module")
def vit():
    """A timm ViT of two blocks, every tensor random."""
    timm = pytest.importorskip("timm")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=5
    )
    return randomized(model)


def vit_config(layer_norm_eps: float) -> VisionEncoderConfig:
    shape = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    return VisionEncoderConfig(image_size=12, patch_size=4, layer_norm_eps=layer_norm_eps, **shape)


@pytest.mark.parametrize("layout", ["timm", "dino", "dino_full"])
def test_a_plain_vit_gives_the_same_hidden_states(vit, layout, tmp_path, caplog):
    state, file = {name: tensor.detach() for name, tensor in vit.state_dict().items()}, tmp_path / "vit.pth"
    if layout == "timm":
        file = tmp_path / "vit.safetensors"
        save_file(state, file)
    elif layout == "dino":
        torch.save({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, file)
    else:
        teacher = {
            f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith("head.")
        }
        torch.save(
            {
                "student": {},
                "teacher": {**teacher, "head.mlp.0.weight": torch.zeros(1)},
                "epoch": 3,
                "args": argparse.Namespace(arch="vit_base"),
            },
            file,
        )
    with caplog.at_level(logging.WARNING):
        weights = read_vit(file, vit_config(1e-6))
    assert "layer_norm_eps" not in caplog.text
    encoder = ImageEncoder(vit_config(1e-6))
    result = encoder.load_state_dict(
        {name.removeprefix("model.image_encoder."): tensor for name, tensor in weights.items()}, strict=False
    )
    assert result.missing_keys == ["mask_token"] and not result.unexpected_keys
    pixels = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, expected = encoder(pixels)[0].last_hidden_state(), vit.forward_features(pixels).flatten(0, 1)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_another_layer_norm_eps_is_said(vit, tmp_path, caplog):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with caplog.at_level(logging.WARNING):
        read_vit(tmp_path / "vit.pth", vit_config(1e-12))
    assert "layer_norm_eps 1e-06" in caplog.text and "head.weight" in caplog.text


def test_a_vit_of_another_size_is_named(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="pos_embed"):
        read_vit(tmp_path / "vit.pth", dataclasses.replace(vit_config(1e-6), image_size=16))
    torch.save({**vit.state_dict(), "blocks.0.ls1.gamma": torch.ones(24)}, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="blocks.0.ls1.gamma"):
        read_vit(tmp_path / "vit.pth", vit_config(1e-6))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    """transformers' ViTModel, which DINO's released weights come in, every tensor random."""
    folder = tmp_path_factory.mktemp("dino")
    model = randomized(transformers.ViTModel(transformers.ViTConfig(**TINY, layer_norm_eps=1e-6)))
    model.save_pretrained(folder)
    return folder, model


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=0.3 if parameter.dim() == 1 else 0.0, std=0.3, generator=draw)
    return model.eval()


def loaded(weights: dict[str, torch.Tensor], *, relative: bool = False) -> ImageEncoder:
    masks = "model.image_encoder.mask_token" in weights
    encoder = ImageEncoder(vit_config(1e-6), masks=masks, relative_positions=relative)
    encoder.load_state_dict({name.removeprefix("model.image_encoder."): own for name, own in weights.items()})
    return encoder


def test_transformers_vit_gives_the_same_hidden_states(dino_folder):
    folder, model = dino_folder
    encoder = loaded(read_vit(folder / "model.safetensors", vit_config(1e-6)))
    pixels = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = encoder(pixels)[0].last_hidden_state(), model(pixels).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("table", ["use_relative_position_bias", "use_shared_relative_position_bias"])
def test_transformers_beit_gives_the_same_states_and_gradients(table, tmp_path):
    shape = transformers.BeitConfig(
        **TINY, **{table: True}, use_mask_token=True, layer_scale_init_value=0.1, layer_norm_eps=1e-6
    )
    model = randomized(transformers.BeitForMaskedImageModeling(shape))
    model.save_pretrained(tmp_path)
    encoder = loaded(read_vit(tmp_path / "model.safetensors", vit_config(1e-6)), relative=True)
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 12, 12, generator=draw)
    masked = torch.rand(3, 9, generator=draw) < 0.4
    theirs = model.layernorm(model.beit(pixels, masked).last_hidden_state).flatten(0, 1)
    ours = encoder(pixels, masked, clean=False)[0].last_hidden_state()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    weights = torch.randn(ours.shape, generator=draw)
    for states in (ours, theirs):
        (states * weights).mean().backward()
    names = {name: own.grad for name, own in model.named_parameters() if own.grad is not None}
    (their_tables,) = ({name: own for name, own in names.items() if "position_bias_table" in name},)
    own_tables = [block.attention.offset_biases.grad for block in encoder.transformer.blocks]
    if len(their_tables) == 1:  # shared by all layers
        own_tables = [torch.stack(own_tables).sum(0)]
    assert all(grad.abs().max() > 1e-5 for grad in own_tables)
    for own, expected in zip(own_tables, their_tables.values(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=3e-5)
    mask_token = names["beit.embeddings.mask_token"].flatten()
    torch.testing.assert_close(encoder.mask_token.grad, mask_token, rtol=0, atol=3e-5)


@pytest.mark.parametrize("table", ["use_rel_pos_bias", "use_shared_rel_pos_bias"])
def test_timms_beit_gives_the_same_hidden_states(table, tmp_path, caplog):
    beit = pytest.importorskip("timm.models.beit")
    shape = dict(img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=5)
    model = randomized(
        beit.Beit(**shape, **{table: True}, init_values=0.1, use_abs_pos_emb=False, global_pool="token")
    )
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "beit.pth")
    with caplog.at_level(logging.WARNING):
        encoder = loaded(read_vit(tmp_path / "beit.pth", vit_config(1e-6)), relative=True)
    assert "dropped the head: head.weight" in caplog.text
    pixels = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = encoder(pixels)[0].last_hidden_state(), model.forward_features(pixels).flatten(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_beit_fine_tuned_on_means_says_whose_norm_it_has(tmp_path, caplog):
    shape = transformers.BeitConfig(**TINY, use_relative_position_bias=True)
    transformers.BeitForImageClassification(shape).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        weights = read_vit(tmp_path / "model.safetensors", vit_config(1e-6))
    assert "trained on the mean of the patches" in caplog.text
    assert "model.image_encoder.final_norm.weight" in weights


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"blocks.1.attn.q_bias": None}, "beit.pth: tensor 'blocks.1.attn.q_bias' of a BEiT is missing"),
        (
            {"blocks.2.norm1.weight": torch.ones(24)},
            "beit.pth: a BEiT of 3 blocks, but the configuration has 2",
        ),
        ({"blocks.1.gamma_2": torch.ones(3)}, "beit.pth: a tensor of 'blocks.1' has another shape"),
        ({"blocks.0.gamma_1": torch.ones(())}, "beit.pth: a tensor of 'blocks.0' has another shape"),
    ],
)
def test_a_beit_that_is_damaged_or_of_another_depth_is_refused(changed, said, tmp_path):
    beit = pytest.importorskip("timm.models.beit")
    state = beit.Beit(
        img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, use_rel_pos_bias=True
    ).state_dict()
    torch.save(
        {name: own for name, own in (state | changed).items() if own is not None}, tmp_path / "beit.pth"
    )
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read_vit(tmp_path / "beit.pth", vit_config(1e-6))


def test_factors_of_a_file_in_half_precision_are_multiplied_in_full(tmp_path):
    shape = transformers.BeitConfig(**TINY, use_relative_position_bias=True)
    randomized(transformers.BeitModel(shape)).half().save_pretrained(tmp_path)
    state = read_file(tmp_path / "model.safetensors")
    ours = vit_weights(state, vit_config(1e-6), "here")
    factor, name = state["encoder.layer.0.lambda_2"].float(), "encoder.layer.0.output.dense.weight"
    expected = factor[:, None] * state[name].float()
    own = ours["model.image_encoder.transformer.blocks.0.mlp_down.weight"]
    torch.testing.assert_close(own, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "vit", "num_attention_heads": 6}, "num_attention_heads is 6; only 12 is supported"),
        ({"model_type": "beit", "hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"model_type": ["vit"]}, "model_type is '['vit']'; supported are"),
    ],
)
def test_settings_with_which_the_weights_compute_something_else_are_refused(settings, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        convert_folder(tmp_path, tmp_path / "out")


def test_weights_that_are_no_numbers_are_refused(vit):
    state = dict(vit.state_dict())
    state["norm.bias"] = torch.full_like(state["norm.bias"], torch.nan)
    with pytest.raises(CheckpointError, match="here: tensor 'norm.bias' holds infinities or no numbers"):
        vit_weights(state, vit_config(1e-6), "here")


def test_vit_weights_fit_the_whole_model(vit, tmp_path):
    tiny = tiny_config()
    config: Config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, image=vit_config(1e-6)))
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    module = build_task(config)
    batch = make_batch(Kind.IMAGE, config)
    before = module.model.encode(batch, [View.IMAGE])[View.IMAGE].first()
    result = module.load_state_dict(read_vit(tmp_path / "vit.pth", config.model.image), strict=False)
    assert not result.unexpected_keys and "model.image_encoder.mask_token" in result.missing_keys
    assert not torch.allclose(before, module.model.encode(batch, [View.IMAGE])[View.IMAGE].first())
