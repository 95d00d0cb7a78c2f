"""ViLT written for transformers and opened there, and read back from its files; what a trained one offers."""

import dataclasses

import pytest
import torch
from families.family_checks import with_words
from families.vilt.vilt_peers import (
    difference,
    inputs_of,
    labels_of,
    make_batch,
    randomize,
    their_vilt,
    tiny_config,
)

from flava_ds import config as configuration
from flava_ds.checkpoints.initial_weights import load_initial_weights
from flava_ds.config.objectives import in_use
from flava_ds.errors import CheckpointError
from flava_ds.families.vilt.hf import LAYOUTS
from flava_ds.families.vilt.task import build_task
from flava_ds.hf import foreign as their_files
from flava_ds.hf.convert import convert_folder


def run_of(folder, **changed):
    """A configuration with a vocabulary of its own, and the task that it builds."""
    config = with_words(tiny_config(**changed), folder)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, initializer_range=0.05))
    return config, randomize(build_task(config))


def test_an_exported_folder_opens_in_transformers_and_comes_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    config, task = run_of(tmp_path)
    their_files.export(config, task.state_dict(), tmp_path / "out")
    theirs, report = transformers.ViltForMaskedLM.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    batch = make_batch()
    inputs = inputs_of(batch)
    with torch.no_grad():
        output = theirs.eval()(
            **inputs | {"pixel_values": inputs["pixel_values"].float()}, labels=labels_of(batch)
        )
        loss = task.losses(batch, only={"mmm_text"})["mmm_text"]
    assert difference(loss.sum / loss.count, output.loss) < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer("A red cats")["input_ids"] == [2, 5, 6, 7, 8, 3]
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pixels.size["shortest_edge"] == 12 and list(pixels.image_mean) == [0.5] * 3
    convert_folder(tmp_path / "out", tmp_path / "ours")
    fresh = build_task(config)
    load_initial_weights(fresh, str(tmp_path / "ours"), "vilt")
    theirs_too = {name for name in task.state_dict() if not name.startswith("objectives.itm.")}
    assert all(torch.equal(fresh.state_dict()[name], task.state_dict()[name]) for name in theirs_too)
    assert configuration.load(tmp_path / "ours" / "config.json").model == config.model


def test_a_decoder_of_its_own_stays_here_and_comes_in(tmp_path, caplog):
    """transformers always ties the decoder: a run that does not is exported as a bare model. A file with
    another decoder than the word embeddings, as the published code has, is read as such.
    """
    transformers = pytest.importorskip("transformers")
    config, task = run_of(tmp_path, tied=False)
    their_files.export(config, task.state_dict(), tmp_path / "out")
    theirs, report = transformers.AutoModel.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert type(theirs).__name__ == "ViltModel" and not any(report.values()), report
    assert "written as ViltModel, without the heads of mmm_text and itm\n" in caplog.text
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    weights = LAYOUTS.read(settings, tensors, "here").weights
    assert weights.keys() == {name for name in task.state_dict() if name.startswith("model.")}

    tied = their_vilt(config)
    own = dict(tied.state_dict())
    assert in_use(LAYOUTS.read(settings, own, "here").objectives)["mmm_text"].tied_decoder
    own["mlm_score.decoder.weight"] = own["mlm_score.decoder.weight"] + 1
    own["mlm_score.bias"] = own.pop("mlm_score.decoder.bias")  # its older name
    found = LAYOUTS.read(settings, own, "here")
    assert not found.objectives["mmm_text"].tied_decoder
    fresh = build_task(dataclasses.replace(config, objectives=found.objectives))
    fresh.load_state_dict(found.weights)
    head = fresh.objectives["mmm_text"].head.decoder
    assert torch.equal(head.weight, own["mlm_score.decoder.weight"])
    assert torch.equal(head.bias, own["mlm_score.bias"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"qkv_bias": False}, "qkv_bias is False; only True is supported"),
        ({"image_size": [12, 16]}, r"image_size is \[12, 16\]; only squares"),
        ({"num_hidden_layers": 4}, "tensor 'vilt.encoder.layer.3"),
        ({"vocab_size": 300}, "'vilt.embeddings.text_embeddings.word_embeddings.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    config, task = run_of(tmp_path)
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        LAYOUTS.read(settings | changes, tensors, "here")


def test_published_settings_have_no_limit_of_patches():
    theirs = {"image_size": 384, "max_image_length": -1}
    from flava_ds.families.vilt.hf import of_transformers

    image = of_transformers(theirs, "here").image
    assert (image.max_patches, image.layer_norm_eps, image.image_size) == (200, 1e-12, 384)
    assert of_transformers(theirs | {"image_size": 512}, "here").image.max_patches == 256
