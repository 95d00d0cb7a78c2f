"""CLIP written for transformers and opened there, and read back from transformers' and open_clip's files."""

import dataclasses
import json
import logging

import pytest
import torch
from families.bert.bert_peers import difference
from families.clip.peers import make_batch, normalized, padded_ids, randomize, tiny_config
from families.family_checks import with_words
from safetensors.torch import save_file

from flava_ds import config as configuration
from flava_ds.checkpoints.initial_weights import load_initial_weights
from flava_ds.errors import CheckpointError
from flava_ds.evaluation.opening import open_model
from flava_ds.families.clip.hf import LAYOUTS, _unseen, entries
from flava_ds.families.clip.task import build_task
from flava_ds.hf import foreign as their_files
from flava_ds.hf.convert import convert_file, convert_folder
from flava_ds.layouts import to_ours, to_theirs
from flava_ds.objectives.sigmoid_contrastive import SigmoidContrastiveConfig


@pytest.fixture
def run(tmp_path):
    """A configuration with a vocabulary of its own, and the task that it builds."""
    config = with_words(tiny_config(), tmp_path)
    task = build_task(config)
    randomize(task.model, 0.1)
    return config, task


def embeddings(task, batch):
    with torch.no_grad():
        rows = task.model.embedding_rows(batch)
        encoded = task.model.encode(batch, rows.keys(), rows)
        found = (
            getattr(task.model, f"{view}_embeddings")(encoded[view].rows(rows[view]))
            for view in ("image", "text")
        )
        return tuple(found)


@pytest.mark.parametrize("open_clip", [False, True])
def test_both_tables_are_exact_in_both_directions(run, open_clip):
    config, task = run
    table, weights = entries(config.model, open_clip=open_clip), task.state_dict()
    theirs = to_theirs(weights, table, "ours")
    again = to_ours(theirs, table, "theirs")
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)
    assert len(theirs) == len({name for entry in table for name in entry.theirs})


def test_an_exported_folder_opens_in_transformers_and_comes_back(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, task = run
    their_files.export(config, task.state_dict(), tmp_path / "out")
    theirs, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    assert theirs.config.text_config.eos_token_id == 3
    batch = make_batch(config, ends=(2, 3))
    ids, mask = padded_ids(batch, 0, 32)
    with torch.no_grad():
        output = theirs.eval()(
            input_ids=ids, attention_mask=mask, pixel_values=normalized(batch["pixel_values"], config).float()
        )
    opened = open_model(tmp_path / "out", device="cpu")
    assert opened.described.family == "clip" and opened.config.data.vocabulary == str(
        tmp_path / "out/vocab.txt"
    )
    again = opened.module.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in task.state_dict().items())
    ours = embeddings(task, batch)
    assert difference(ours[0], output.image_embeds) < 1e-5 and difference(ours[1], output.text_embeds) < 1e-5
    convert_folder(tmp_path / "out", tmp_path / "ours")
    fresh = build_task(config)
    load_initial_weights(fresh, str(tmp_path / "ours"), "clip")
    assert all(torch.equal(tensor, task.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    assert configuration.load(tmp_path / "ours" / "config.json").model == config.model
    with pytest.raises(CheckpointError, match="was written by family 'clip', this configuration is 'flava'"):
        load_initial_weights(fresh, str(tmp_path / "ours"), "flava")


def test_exported_processors_do_what_training_did(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, task = run
    their_files.export(config, task.state_dict(), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer("A red cats")["input_ids"] == [2, 5, 6, 7, 8, 3] and tokenizer.model_max_length == 32
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    pixels = make_batch(config)["pixel_values"][0]
    assert (
        difference(processor(pixels, return_tensors="pt")["pixel_values"][0], normalized(pixels, config))
        < 1e-5
    )


def test_byte_pairs_travel_with_an_export(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("open_clip", reason="the published rules come with open_clip_torch")
    config, task = run
    text = dataclasses.replace(config.model.text, vocab_size=49_408)
    data = dataclasses.replace(config.data, vocabulary="clip_bpe")
    config = dataclasses.replace(config, data=data, model=dataclasses.replace(config.model, text=text))
    their_files.export(config, build_task(config).state_dict(), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    from flava_ds.data.tokenizer import load_tokenizer

    ours = load_tokenizer("clip_bpe")
    for words in ("A photo of 42 cats, don't!", "naïve 日本語"):
        assert theirs(words)["input_ids"] == ours.encode_batch([words], 77)[0].tolist()
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["text_config"]["eos_token_id"] == 49_407


def open_clip_tensors(run):
    """A run's weights by open_clip's names, heads of 64 as everywhere there."""
    config, _ = run
    image = dataclasses.replace(
        config.model.image, hidden_size=128, num_attention_heads=2, intermediate_size=96
    )
    text = dataclasses.replace(config.model.text, hidden_size=64, num_attention_heads=1, intermediate_size=48)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image, text=text))
    task = build_task(config)
    theirs = to_theirs(task.state_dict(), entries(config.model, open_clip=True), "ours")
    return config, task, {name: tensor.contiguous() for name, tensor in theirs.items()}


def test_files_of_open_clip_are_read(run, tmp_path, caplog):
    config, task, theirs = open_clip_tensors(run)
    assert LAYOUTS.recognizes(theirs)
    wrapped = {
        f"module.{name}": tensor for name, tensor in {**theirs, "attn_mask": torch.zeros(32, 32)}.items()
    }
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "epoch_3.pt")
    with caplog.at_level(logging.WARNING):
        convert_file(tmp_path / "epoch_3.pt", tmp_path / "ours")
    assert "neither the activation nor the number of heads" in caplog.text
    assert "names the vocabulary bert_base_uncased, of 30,522 words, and the model has 200" in caplog.text
    model = configuration.load(tmp_path / "ours" / "config.json").model
    assert model == dataclasses.replace(config.model, activation="gelu")
    fresh = build_task(config)
    load_initial_weights(fresh, str(tmp_path / "ours"), "clip")
    assert all(torch.equal(tensor, task.state_dict()[name]) for name, tensor in fresh.state_dict().items())


def test_the_bias_of_open_clips_sigmoid_loss_comes_along(run, tmp_path):
    """To a run whose recipe's contrastive loss was replaced by the sigmoid one, which keeps its name."""
    own, task, theirs = open_clip_tensors(run)
    torch.save({**theirs, "logit_bias": torch.tensor(-9.5)}, tmp_path / "siglip.pt")
    convert_file(tmp_path / "siglip.pt", tmp_path / "ours")
    objectives = configuration.load(tmp_path / "ours" / "config.json").objectives
    assert {name: own.type for name, own in objectives.items()} == {
        "global_contrastive": "sigmoid_contrastive"
    }
    switched = {name: SigmoidContrastiveConfig() for name in own.objectives}
    fresh = build_task(dataclasses.replace(own, objectives=switched))
    load_initial_weights(fresh, str(tmp_path / "ours"), "clip")
    assert fresh.objectives["global_contrastive"].logit_bias.item() == -9.5
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in task.state_dict().items())


def test_an_export_says_that_the_bias_of_the_sigmoid_loss_has_no_place(run, tmp_path, caplog):
    config, task = run
    weights = {**task.state_dict(), "objectives.global_contrastive.logit_bias": torch.tensor([-9.5])}
    their_files.export(config, weights, tmp_path / "out")
    assert "written as CLIPModel, without the heads of global_contrastive\n" in caplog.text


@pytest.mark.parametrize(("quick", "activation"), [({"quick_gelu": True}, "quick_gelu"), ({}, "gelu")])
def test_folders_of_open_clip_are_read_with_their_activation_and_pixels(run, tmp_path, quick, activation):
    config, _, theirs = open_clip_tensors(run)
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(theirs, folder / "open_clip_model.safetensors")
    towers = {"vision_cfg": {"width": 128, "head_width": 32}, "text_cfg": {"width": 64, "heads": 2}}
    pixels = {"mean": [0.5, 0.5, 0.25], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
    settings = {"model_cfg": {"embed_dim": 12, **towers, **quick}, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    convert_folder(folder, tmp_path / "ours")
    image = dataclasses.replace(
        config.model.image, num_attention_heads=4, image_mean=(0.5, 0.5, 0.25), image_std=(0.5, 0.5, 0.5)
    )
    text = dataclasses.replace(config.model.text, num_attention_heads=2)
    assert configuration.load(tmp_path / "ours" / "config.json").model == dataclasses.replace(
        config.model, activation=activation, image=image, text=text
    )


def test_a_model_configuration_alone_says_the_same_and_another_programs_nothing(caplog):
    towers = {"vision_cfg": {"width": 1280, "head_width": 80}, "text_cfg": {"width": 1024, "heads": 16}}
    assert _unseen({**towers, "quick_gelu": True}, 1280, 1024, "here") == ("quick_gelu", 16, 16)
    assert not caplog.records
    assert _unseen({"architectures": ["CLIPModel"]}, 1280, 1024, "here") == ("gelu", 16, 16)
    assert "neither the activation nor the number of heads" in caplog.text
    same = {"vision_cfg": {"act_kwargs": {}, "norm_kwargs": {}}}
    assert _unseen({"model_cfg": same}, 128, 512, "here") == ("gelu", 2, 8)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("vision_cfg", {"pool_type": "avg"}, 'vision_cfg.pool_type is "avg"; this model has "tok"'),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask is true; this model has false"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-6}}, "text_cfg.norm_kwargs is .*; this model has null"),
    ],
)
def test_what_of_open_clip_shows_in_no_tensor_and_does_not_fit_is_named(run, section, changes, message):
    _, _, theirs = open_clip_tensors(run)
    settings = {"model_cfg": {"text_cfg": {"heads": 1}, section: {"heads": 1, **changes}}}
    with pytest.raises(CheckpointError, match=f"here: {message}"):
        LAYOUTS.read(settings, theirs, "here")


def test_heads_of_open_clips_published_models():
    """A state dict has no heads: they come from the width, as open_clip's own configurations have them."""
    pytest.importorskip("open_clip")
    from open_clip.factory import _MODEL_CONFIGS as published

    seen = set()
    for name, settings in published.items():
        image, text = settings["vision_cfg"], settings.get("text_cfg", {})
        if "heads" not in text or "timm_model_name" in image or not isinstance(image["layers"], int):
            continue
        seen.add(name)
        expected = image["width"] // image.get("head_width", 64), text["heads"]
        with_settings = {
            "model_cfg": {"vision_cfg": {**image, "pool_type": "tok"}, "text_cfg": {"heads": text["heads"]}}
        }
        for given in (None, with_settings):
            assert _unseen(given, image["width"], text["width"], name)[1:] == expected, name
    assert {"ViT-B-32", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"} <= seen


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("text_config", {"hidden_act": "gelu"}, "gelu or quick_gelu in both towers"),
        ("vision_config", {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ("vision_config", {"num_hidden_layers": 3}, "tensor 'vision_model.encoder.layers.2"),
        (None, {"model_type": "siglip"}, "model_type is 'siglip'"),
    ],
)
def test_what_does_not_fit_is_named(run, tmp_path, section, changes, message):
    config, task = run
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    (settings if section is None else settings[section]).update(changes)
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        LAYOUTS.read(settings, tensors, "here")


def test_a_vocabulary_that_transformers_would_misread_is_refused(run, tmp_path):
    config, task = run
    (tmp_path / "other.txt").write_text("\n".join(["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]"]) + "\n")
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, vocabulary=str(tmp_path / "other.txt"))
    )
    with pytest.raises(CheckpointError, match="has id 2, for which transformers pools at another row"):
        LAYOUTS.write(config, task.state_dict())
