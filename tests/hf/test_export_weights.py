"""Exported folders opened by transformers, offline, and compared with the model they came from."""

import dataclasses

import numpy as np
import pytest
import torch
from checkpoint_helpers import write_checkpoint
from foreign import transformers
from safetensors.torch import load_file, save_file
from sample_batches import tiny_config

from flava_ds.codebook.image_codebook import ImageCodebook, load_codebook, save_codebook
from flava_ds.config import Config, LoggingConfig, save
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.hf import LAYOUTS, transformers_settings
from flava_ds.families.flava.task import FlavaTask, build_task
from flava_ds.families.flava.views import Kind
from flava_ds.hf import parity
from flava_ds.hf.export_weights import (
    codebook_beside,
    export,
    verify_export,
    verify_model,
)
from flava_ds.hf.files import read_folder, read_json
from flava_ds.hf.foreign import export as write_model
from flava_ds.hf.foreign import open_folder
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MaskedTextConfig


def random_module(config: Config) -> FlavaTask:
    """Every tensor random, so that nothing passes as zero."""
    module = build_task(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.1, generator=draw)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return module


def written(config: Config, out) -> FlavaTask:
    module = random_module(config)
    write_model(config, module.state_dict(), out)
    return module


@pytest.mark.parametrize("poolers", [False, True])
def test_a_written_folder_computes_the_same(tmp_path, poolers, caplog):
    """What is read from it is told where it is lost: the poolers that a run trained, not those made up."""
    config = tiny_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, poolers=poolers))
    module = written(config, tmp_path)
    assert 0 < verify_model(module, config, tmp_path) < 3e-6
    caplog.clear()
    assert len(open_folder(tmp_path).dropped) == 6
    assert ("dropped 6 tensors that are not used here" in caplog.text) == poolers == bool(caplog.messages)


def make_run(folder) -> Config:
    """A run's folder with one published checkpoint of random weights, and a codebook."""
    save_codebook(ImageCodebook(tiny_config().codebook), folder / "codebook.safetensors")
    config = tiny_config(
        codebook_weights=str(folder / "codebook.safetensors"),
        logging=LoggingConfig(run_directory=str(folder)),
    )
    config.run_path.mkdir()
    save(config, config.run_path / "config.json")
    write_checkpoint(config.run_path / "checkpoints", 7, random_module(config).state_dict(), config)
    return config


def test_a_run_is_exported_and_verified(tmp_path):
    config = make_run(tmp_path)
    out = export(config.run_path, tmp_path / "hf" / "tiny")
    assert out == tmp_path / "hf" / "tiny"
    assert 0 < verify_export(config.run_path, out) < 3e-6
    codebook, report = transformers.FlavaImageCodebook.from_pretrained(
        out / "image_codebook", local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixels = torch.randint(
        0, 256, (2, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    expected = load_codebook(config.codebook_weights, config.codebook).encode(pixels)
    assert torch.equal(codebook.get_codebook_indices(0.8 * pixels / 255 + 0.1).flatten(1), expected)


def test_a_run_is_exported_without_a_codebook_that_is_gone_or_random(tmp_path, caplog):
    config = make_run(tmp_path)
    export(config.run_path, tmp_path / "hf")
    assert (tmp_path / "hf" / "image_codebook" / "model.safetensors").is_file()
    (tmp_path / "codebook.safetensors").rename(tmp_path / "other.safetensors")
    out = export(config.run_path, tmp_path / "hf")
    assert "hf/image_codebook: deleted, as these weights come without a codebook" in caplog.text
    assert f"is not at {tmp_path}/codebook.safetensors, where the run's '{tmp_path}" in caplog.text
    assert (out / "model.safetensors").is_file() and not (out / "image_codebook").exists()
    assert codebook_beside(dataclasses.replace(config, codebook_weights="random")) is None
    assert "the image codebook was random, so it is not exported" in caplog.text
    (tmp_path / "codebook.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"codebook\.safetensors: not a readable"):
        export(config.run_path, tmp_path / "hf2")
    assert not (tmp_path / "hf2").exists()


def test_a_run_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_tensor_is_found(tmp_path):
    config = tiny_config()
    module = written(config, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["itm_head.seq_relationship.weight"] *= 1.01
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="itm_logits of a pair batch differ"):
        verify_model(module, config, tmp_path)
    del tensors["flava.image_to_mm_projection.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing \['flava.image_to_mm_projection.bias'\]"):
        verify_model(module, config, tmp_path)


def test_the_round_trip_through_a_folder_is_exact(tmp_path):
    config = tiny_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, poolers=True))
    module = written(config, tmp_path)
    imported = LAYOUTS.read(
        read_json(tmp_path / "config.json"), read_folder(tmp_path), str(tmp_path), poolers=True
    )
    assert imported.model == config.model and not imported.dropped
    assert imported.weights.keys() == module.state_dict().keys()
    assert all(torch.equal(imported.weights[name], tensor) for name, tensor in module.state_dict().items())


def test_base_model_and_poolers(tmp_path):
    """FlavaModel opens the same folder; a pooler that the run lacks is the tanh of the CLS."""
    config = tiny_config()
    written(config, tmp_path)
    model, report = transformers.FlavaModel.from_pretrained(
        tmp_path, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    batch = parity.random_batch(Kind.IMAGE, config)
    with torch.no_grad():
        output = model(pixel_values=parity.huggingface_inputs(batch, config)["pixel_values"]).image_output
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0].tanh())


def test_objectives_that_were_off_have_no_head(tmp_path):
    objectives = flava_objectives(itm=ImageTextMatchingConfig(weight=0.0), mlm=MaskedTextConfig(weight=0.0))
    config = tiny_config(objectives=objectives)
    module = written(config, tmp_path)
    assert not any(
        name.startswith(("itm_head", "mlm_head")) for name in load_file(tmp_path / "model.safetensors")
    )
    assert 0 < verify_model(module, config, tmp_path) < 3e-6
    assert open_folder(tmp_path).objectives["itm"].weight == 0


def test_unequal_widths_are_refused(tmp_path):
    config = tiny_config()
    multimodal = dataclasses.replace(config.model.multimodal, hidden_size=48)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, multimodal=multimodal))
    with pytest.raises(
        CheckpointError, match="model.image.hidden_size 24 differs from model.multimodal.hidden_size 48"
    ):
        written(config, tmp_path)


def test_the_configuration_is_transformers_own(tmp_path):
    """Every key is a field of FlavaConfig and its parts, so that none is silently ignored there."""
    raw = transformers_settings(tiny_config())
    config = transformers.FlavaConfig(**raw)
    for key, value in raw.items():
        part = getattr(config, key)
        known = type(part)().to_dict() if isinstance(value, dict) else {}
        assert not isinstance(value, dict) or set(value) <= set(known), key
    assert set(raw) <= set(transformers.FlavaConfig().to_dict())
    assert config.image_config.vocab_size == 50 and config.text_config.num_hidden_layers == 3


def test_tokenizer_and_image_processor(tmp_path):
    """BertTokenizer and FlavaProcessor open the folder and agree with what training reads."""
    config = tiny_config()
    written(config, tmp_path)
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = ["A café near Zürich, isn't it?", "two   dogs", ""]
    ours = WordPieceTokenizer(config.data.vocabulary).encode_batch(texts, 32)
    assert [tokenizer(text)["input_ids"] for text in texts] == [ids.tolist() for ids in ours]
    processor = transformers.FlavaProcessor.from_pretrained(tmp_path, local_files_only=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    inputs = processor(
        images=[pixels],
        text=["two dogs"],
        return_tensors="pt",
        return_codebook_pixels=True,
        return_image_mask=True,
    )
    expected = parity.normalized(torch.from_numpy(pixels).permute(2, 0, 1)[None], config).float()
    torch.testing.assert_close(inputs["pixel_values"], expected, rtol=1e-5, atol=1e-5)
    assert inputs["codebook_pixel_values"].shape == (1, 3, 24, 24)
    assert inputs["bool_masked_pos"].shape[-2:] == (3, 3)
