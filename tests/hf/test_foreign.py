"""Folders as transformers, the Hub, DINO and timm leave them; and folders that are broken."""

import json
import logging

import pytest
import torch
from foreign import our_model, their_model, their_state
from safetensors.torch import load_file, save_file
from sample_batches import tiny_config

from flava_ds import cli
from flava_ds.checkpoints.initial_weights import load_initial_weights
from flava_ds.codebook.image_codebook import ImageCodebook, huggingface_name, load_codebook
from flava_ds.config import load
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.hf import LAYOUTS
from flava_ds.families.flava.task import build_task
from flava_ds.hf.files import read_folder, read_json
from flava_ds.hf.foreign import config_of, open_folder, write_imported


@pytest.fixture(scope="module")
def theirs():
    return their_model(tiny_config())


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return tmp_path


def check_model(imported, theirs) -> None:
    """The imported configuration describes the tiny model, and its weights are those of `our_model`."""
    tiny = tiny_config()
    assert imported.model == tiny.model
    assert (imported.codebook.vocab_size, imported.codebook.grid_size) == (
        tiny.codebook.vocab_size,
        tiny.codebook.grid_size,
    )
    module = build_task(config_of(imported))
    module.load_state_dict(imported.weights)
    expected = our_model(tiny, theirs).state_dict()
    assert module.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_a_saved_folder(folder, theirs):
    check_model(open_folder(folder), theirs)


def test_a_sharded_folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    check_model(open_folder(tmp_path), theirs)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_folder(tmp_path)


def test_an_old_pickle_with_buffers_tied_names_and_codebook(folder, theirs):
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    assert "mim_head.bias" in state and "mim_head.decoder.bias" in state
    state |= {
        "flava.text_model.embeddings.position_ids": torch.arange(32)[None],
        "image_codebook.blocks.input.bias": torch.ones(8),
    }
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    imported = open_folder(folder)
    check_model(imported, theirs)
    assert imported.codebook_weights.keys() == {"blocks.input.bias"}
    assert "flava.text_model.embeddings.position_ids" in imported.dropped
    state["mim_head.bias"] = state["mim_head.bias"] + 1
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="mim_head.bias"):
        open_folder(folder)


def test_initial_weights_read_what_was_written(folder, tmp_path):
    state = load_file(folder / "model.safetensors")
    codebook = ImageCodebook(tiny_config().codebook, decoder=False)
    foreign = {
        f"image_codebook.{huggingface_name(name)}": tensor
        for name, tensor in codebook.encoder.state_dict().items()
    }
    save_file({**state, **foreign}, folder / "model.safetensors")
    out = write_imported(open_folder(folder), tmp_path / "ours")
    config = load(out / "config.json")
    module = build_task(config)
    load_initial_weights(module, str(out), "flava")
    expected = open_folder(folder).weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
    loaded = load_codebook(out / "image_codebook", tiny_config().codebook)
    assert all(
        torch.equal(tensor, codebook.state_dict()[name]) for name, tensor in loaded.state_dict().items()
    )


def test_a_base_model_has_no_heads(theirs, tmp_path):
    theirs.flava.save_pretrained(tmp_path)
    imported = open_folder(tmp_path)
    module = build_task(config_of(imported))
    module.load_state_dict(imported.weights)
    assert set(module.objectives) == {"global_contrastive"}
    assert not any(name.startswith("objectives.") for name in imported.weights)


def test_poolers_are_kept_or_dropped_aloud(folder, theirs, caplog):
    with caplog.at_level(logging.WARNING):
        imported = open_folder(folder)
    assert len(imported.dropped) == 6 and all(".pooler.dense." in name for name in imported.dropped)
    assert "flava.image_model.pooler.dense.weight" in caplog.text
    kept = LAYOUTS.read(read_json(folder / "config.json"), read_folder(folder), str(folder), poolers=True)
    assert kept.model.poolers and not kept.dropped
    assert torch.equal(
        kept.weights["model.text_encoder.pooler.dense.weight"], theirs.flava.text_model.pooler.dense.weight
    )
    build_task(config_of(kept)).load_state_dict(kept.weights)


def test_a_head_whose_weight_is_zero_is_dropped(folder):
    edit(folder, itm_weight=0.0)
    imported = open_folder(folder)
    assert imported.objectives["itm"].weight == 0 and "itm_head.seq_relationship.bias" in imported.dropped
    build_task(config_of(imported)).load_state_dict(imported.weights)


def edit(folder, part: str | None = None, **values) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (raw[part] if part else raw).update(values)
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        (
            "image_config",
            {"hidden_act": "relu"},
            "image_config: hidden_act is 'relu'; .* class is Flava",
        ),
        ("text_config", {"qkv_bias": False}, "text_config: qkv_bias is False"),
        ("multimodal_config", {"use_cls_token": False}, "use_cls_token"),
        ("image_config", {"image_size": [12, 24]}, "only squares"),
        ("image_config", {"image_size": 16}, "position_embeddings"),
        ("text_config", {"num_hidden_layers": 4}, r"flava.text_model.encoder.layer.3.*is missing"),
        ("text_config", {"num_hidden_layers": 2}, r"flava.text_model.encoder.layer.2.*is unknown"),
        ("text_config", {"hidden_size": "24"}, "config.json: a setting has another type"),
        ("text_config", {"vocab_size": 201}, r"word_embeddings.weight' has shape \[200, 24\]"),
        (None, {"model_type": "vit"}, "model_type is 'vit'; supported are flava, clip"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(folder, part, values, words):
    edit(folder, part, **values)
    with pytest.raises(CheckpointError, match=words):
        open_folder(folder)


def test_pairs_of_equal_sizes_are_fine(folder, theirs):
    edit(folder, "image_config", image_size=[12, 12], patch_size=[4, 4])
    check_model(open_folder(folder), theirs)


def test_broken_folders(folder, tmp_path):
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "flava.image_to_mm_projection.bias"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        open_folder(folder)
    save_file({**tensors, "extra.weight": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="'extra.weight' is unknown"):
        open_folder(folder)
    weights.write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match="model.safetensors: not a readable"):
        open_folder(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        open_folder(folder)
    for content in (b"", b"\x80"):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin: not a readable .*\(\w"):
            open_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: not readable as JSON"):
        open_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        open_folder(folder)


class Harmful:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_runs_no_code(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"flava.logit_scale": Harmful(tmp_path / "harm")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        open_folder(folder)
    assert not (tmp_path / "harm").exists()


def test_the_command_makes_initial_weights_of_a_folder_and_of_a_vit(folder, tmp_path, capsys):
    timm = pytest.importorskip("timm")
    assert cli.main(["convert", str(folder), "--to", "flava_ds", str(tmp_path / "ours")]) == 0
    module = build_task(load(tmp_path / "ours" / "config.json"))
    load_initial_weights(module, str(tmp_path / "ours"), "flava")
    assert all(
        torch.equal(tensor, open_folder(folder).weights[name]) for name, tensor in module.state_dict().items()
    )
    torch.save(timm.create_model("vit_base_patch16_224").state_dict(), tmp_path / "vit.pth")
    assert cli.main(["convert", str(tmp_path / "vit.pth"), "--to", "flava_ds", str(tmp_path / "vit")]) == 0
    written = load_file(tmp_path / "vit" / "model.safetensors")
    assert written["model.image_encoder.position_embeddings"].shape == (197, 768)
    assert capsys.readouterr().out.split() == [str(tmp_path / "ours"), str(tmp_path / "vit")]


def test_the_theirs_helper_leaves_no_tensor_out(theirs):
    names = {name for name in their_state(theirs, poolers=True)}
    assert {
        f"{head}_head.bias" for head in ("mim", "mlm", "mmm_image", "mmm_text")
    } == theirs.state_dict().keys() - names
