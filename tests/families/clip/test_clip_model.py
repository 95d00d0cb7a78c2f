"""CLIP against transformers' CLIPModel and open_clip's CLIP on random weights, and what only a causal packed
tower can get wrong.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from families.bert.bert_peers import difference
from families.clip.peers import (
    END,
    START,
    make_batch,
    normalized,
    our_gradients,
    our_model,
    padded_ids,
    randomize,
    their_gradients,
    tiny_config,
    without_patches,
)
from families.family_checks import step, with_words

from flava_ds.config import Config
from flava_ds.families.clip.config import vit_b_16, vit_b_32, vit_l_14
from flava_ds.families.clip.hf import transformers_settings
from flava_ds.families.clip.task import ClipTask, build_task
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig


def their_clip(config: Config, std: float = 0.1, **ids):
    """transformers' CLIPModel of the same shape, spelled out by hand."""
    transformers = pytest.importorskip("transformers")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    image, text = config.model.image, config.model.text
    towers = [
        {name: getattr(part, name) for name in names} | {"hidden_act": config.model.activation}
        for part in (image, text)
    ]
    ids = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 1} | ids
    theirs = transformers.CLIPConfig(
        vision_config={**towers[0], "image_size": image.image_size, "patch_size": image.patch_size},
        text_config={
            **towers[1],
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_position_embeddings,
            **ids,
        },
        projection_dim=config.model.projection_dim,
    )
    return randomize(transformers.CLIPModel(theirs), std)


def check(config, theirs, batch, output, told, *, states, gradients, open_clip=False):
    """Compares features, loss and every gradient; `output` are their image features, text
    features and loss."""
    reference, dtype = "open_clip" if open_clip else "CLIPModel", next(theirs.parameters()).dtype
    told.parity("clip", reference, dtype, states, gradients)
    task = our_model(config, theirs, open_clip=open_clip)
    with torch.no_grad():
        rows = task.model.embedding_rows(batch)
        encoded = task.model.encode(batch, rows.keys(), rows)
        image = task.model.image_embeddings(encoded["image"].rows(rows["image"]))
        text = task.model.text_embeddings(encoded["text"].rows(rows["text"]))
    loss = step(task, batch)
    found = {
        "image": difference(image, output[0]),
        "text": difference(text, output[1]),
        "loss": difference(loss, output[2]),
    }
    assert told.output(max(found.values())) <= states, found
    loss.backward()
    output[2].backward()
    ours, expected = our_gradients(task), their_gradients(theirs, config, open_clip=open_clip)
    assert ours.keys() == expected.keys()
    found = {name: difference(ours[name], expected[name]) for name in ours}
    print({"states": found, "gradients": max(found.values())})
    told.gradients(found, gradients)


def run_transformers(theirs, batch, config, length=None, fill=1):
    ids, mask = padded_ids(batch, fill, length)
    pixels = batch["pixel_values"]
    pixels = normalized(pixels, config).to(theirs.dtype) if pixels.dtype == torch.uint8 else pixels
    output = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True)
    return output.image_embeds, output.text_embeds, output.loss


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("lengths", [(5, 12, 2, 9), (8, 8, 8), (3, 32)])
def test_transformers_agree_in_fp32(activation, lengths, told):
    config = tiny_config(activation)
    theirs, batch = their_clip(config), make_batch(config, lengths)
    check(config, theirs, batch, run_transformers(theirs, batch, config), told, states=1e-5, gradients=3e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_transformers_agree_in_fp64(activation, told):
    config = tiny_config(activation)
    theirs, batch = their_clip(config).double(), make_batch(config)
    batch = batch.having(pixel_values=normalized(batch["pixel_values"], config))
    check(config, theirs, batch, run_transformers(theirs, batch, config), told, states=1e-12, gradients=1e-12)


@pytest.mark.parametrize(("ids", "fill"), [({"eos_token_id": 2}, 1), ({"pad_token_id": END}, END)])
def test_the_old_configurations_of_transformers_pool_the_same_row(ids, fill, told):
    """With eos 2 it looks for the largest id; with the end as padding, for the first end. Ours is the last
    row of a text either way.
    """
    config = tiny_config()
    theirs, batch = their_clip(config, **ids), make_batch(config)
    check(
        config,
        theirs,
        batch,
        run_transformers(theirs, batch, config, length=32, fill=fill),
        told,
        states=1e-5,
        gradients=3e-5,
    )


def their_open_clip(config: Config, std: float = 0.1):
    """open_clip's CLIP of the same shape: heads have the width of ours."""
    model = pytest.importorskip("open_clip").model
    image, text = config.model.image, config.model.text
    vision = model.CLIPVisionCfg(
        layers=image.num_hidden_layers,
        width=image.hidden_size,
        head_width=image.hidden_size // image.num_attention_heads,
        mlp_ratio=image.intermediate_size / image.hidden_size,
        patch_size=image.patch_size,
        image_size=image.image_size,
    )
    words = model.CLIPTextCfg(
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        layers=text.num_hidden_layers,
        mlp_ratio=text.intermediate_size / text.hidden_size,
    )
    quick = config.model.activation == "quick_gelu"
    return randomize(model.CLIP(config.model.projection_dim, vision, words, quick_gelu=quick), std)


def run_open_clip(theirs, batch, config):
    """Their features and their loss over one rank: texts padded with zeros to the whole context, as their
    tokenizer does.
    """
    ids, _ = padded_ids(batch, 0, config.model.text.max_position_embeddings)
    pixels = normalized(batch["pixel_values"], config).to(theirs.logit_scale.dtype)
    image, text, scale = theirs(pixels, ids)[:3]
    logits, labels = scale * image @ text.T, torch.arange(batch.size)
    return image, text, (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_open_clip_agrees_in_fp32(activation, told):
    config = tiny_config(activation)
    theirs, batch = their_open_clip(config), make_batch(config)
    check(
        config,
        theirs,
        batch,
        run_open_clip(theirs, batch, config),
        told,
        states=1e-5,
        gradients=3e-5,
        open_clip=True,
    )


def test_open_clip_without_the_same_patches_agrees_in_fp64(told):
    config = tiny_config("gelu")
    theirs, batch = their_open_clip(config).double(), make_batch(config)
    batch = without_patches(batch, config, 0.3)
    rows, width = batch["present_rows"], config.model.image.hidden_size
    own = pytest.importorskip("open_clip").transformer.PatchDropout(0.3).train()
    assert own(torch.zeros(4, 10, 1)).shape[1] == rows.shape[1] == 7
    theirs.visual.patch_dropout.forward = lambda hidden: hidden.gather(
        1, rows[:, :, None].expand(-1, -1, width)
    )
    output = run_open_clip(theirs, batch, config)
    batch = batch.having(pixel_values=normalized(batch["pixel_values"], config))
    check(config, theirs, batch, output, told, states=1e-12, gradients=1e-12, open_clip=True)


def test_evaluation_sees_every_patch():
    config = tiny_config()
    model, batch = build_task(config).eval().model, make_batch(config)
    less = without_patches(batch, config, 0.5)
    found, expected = (model.encode(own, ["image"])["image"].first() for own in (less, batch))
    assert torch.equal(found, expected)
    assert not torch.equal(model.train().encode(less, ["image"])["image"].first(), expected)


BASE_GRADIENTS = 1e-4
"""In fp32, over twelve layers: transformers' gradients are 2.6e-5 away from fp64's, ours 3.7e-5."""


@pytest.mark.slow
def test_open_clips_base_model_agrees(told):
    """Small models agree with both activations, and the other base model of theirs differs in no more."""
    open_clip = pytest.importorskip("open_clip")
    config = Config(
        name="base",
        model=vit_b_32(activation="gelu"),
        objectives={"global_contrastive": GlobalContrastiveConfig()},
    )
    other = open_clip.get_model_config("ViT-B-32-quickgelu")
    assert other == open_clip.get_model_config("ViT-B-32") | {"quick_gelu": True}
    theirs = open_clip.create_model("ViT-B-32", pretrained=None).train()
    batch = make_batch(config, (7, 77), ends=(49_406, 49_407))
    check(
        config,
        theirs,
        batch,
        run_open_clip(theirs, batch, config),
        told,
        states=1e-5,
        gradients=BASE_GRADIENTS,
        open_clip=True,
    )


@pytest.mark.slow
def test_transformers_base_model_agrees(told):
    config = Config(
        name="base", model=vit_b_16(), objectives={"global_contrastive": GlobalContrastiveConfig()}
    )
    theirs = their_clip(config, std=0.02, bos_token_id=49_406, eos_token_id=49_407)
    batch = make_batch(config, (7, 77), ends=(49_406, 49_407))
    check(
        config,
        theirs,
        batch,
        run_transformers(theirs, batch, config),
        told,
        states=1e-5,
        gradients=BASE_GRADIENTS,
    )


@pytest.mark.parametrize(
    ("shape", "image", "text", "total"),
    [
        (vit_b_32, 87_456_000, 63_165_952, 151_277_313),
        (vit_b_16, 85_799_424, 63_165_952, 149_620_737),
        (vit_l_14, 303_179_776, 123_060_480, 427_616_513),
    ],
)
def test_parameter_counts_are_the_published_ones(shape, image, text, total):
    config = Config(name="x", model=shape(), objectives={"global_contrastive": GlobalContrastiveConfig()})
    with torch.device("meta"):
        task = ClipTask(config)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert (count(task.model.image_encoder), count(task.model.text_encoder), count(task)) == (
        image,
        text,
        total,
    )


def test_no_token_sees_one_behind_it_and_the_last_sees_all():
    config = tiny_config()
    model = build_task(config).double().model
    batch = make_batch(config, (6, 9))
    hidden = model.encode(batch, {"text"})["text"].last_hidden_state()
    for changed in range(15):
        ids = batch["input_ids"].clone()
        ids[changed] = (ids[changed] + 7) % 190
        other = model.encode(batch.having(input_ids=ids), {"text"})["text"].last_hidden_state()
        moved = (other - hidden).abs().amax(-1) > 1e-9
        end = 6 if changed < 6 else 15
        assert moved[changed:end].all() and not moved[:changed].any() and not moved[end:].any()


def test_the_first_draw_has_the_published_spread():
    config = tiny_config()
    wide = dataclasses.replace(
        config.model.text, hidden_size=256, intermediate_size=1024, num_attention_heads=4
    )
    image = dataclasses.replace(config.model.image, hidden_size=192, intermediate_size=768)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, text=wide, image=image, projection_dim=128)
    )
    model = build_task(config).model
    text, image, block = model.text_encoder, model.image_encoder, model.text_encoder.transformer.blocks[1]
    expected = {
        "words": (text.word_embeddings.weight, 0.02),
        "text positions": (text.positions, 0.01),
        "image positions": (image.positions, 192**-0.5),
        "image projection": (model.image_projection.weight, 192**-0.5),
        "text projection": (model.text_projection.weight, 256**-0.5),
        "qkv": (block.attention.qkv.weight, 256**-0.5),
        "output": (block.attention.output.weight, 256**-0.5 * 6**-0.5),
        "up": (block.mlp_up.weight, 512**-0.5),
        "down": (block.mlp_down.weight, 256**-0.5 * 6**-0.5),
        "image qkv": (image.transformer.blocks[0].attention.qkv.weight, (2 / (4 * 192)) ** 0.5),
        "patches": (image.patch_embedding.weight, (1 / (3 * 48)) ** 0.5),
    }
    for name, (tensor, std) in expected.items():
        assert float(tensor.detach().std()) == pytest.approx(std, rel=0.05), name
    assert not block.attention.qkv.bias.any() and not block.attention.output.bias.any()
    assert torch.equal(build_task(config).model.text_projection.weight, model.text_projection.weight)


def test_settings_for_transformers_name_the_vocabulary_of_the_run(tmp_path):
    text = transformers_settings(with_words(tiny_config(), tmp_path))["text_config"]
    assert (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"]) == (2, 3, 0)
