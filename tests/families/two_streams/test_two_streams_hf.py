"""LXMERT written for transformers and opened there, and read back from its files."""

import dataclasses

import pytest
import torch
from families.family_checks import with_words
from families.two_streams.two_stream_peers import (
    difference,
    inputs_of,
    labels_of,
    lxmert,
    make_batch,
    randomize,
    their_lxmert,
)

from flava_ds import config as configuration
from flava_ds.checkpoints.initial_weights import load_initial_weights
from flava_ds.errors import CheckpointError
from flava_ds.families.two_streams.hf import LAYOUTS
from flava_ds.families.two_streams.task import build_task
from flava_ds.hf import foreign as their_files
from flava_ds.hf.convert import convert_folder


def run_of(folder, **changed):
    """A configuration with a vocabulary of its own, and the task that it builds."""
    config = with_words(lxmert(**changed), folder)
    return config, randomize(build_task(config))


def test_an_exported_folder_opens_in_transformers_and_comes_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    config, task = run_of(tmp_path)
    their_files.export(config, task.state_dict(), tmp_path / "out")
    theirs, report = transformers.LxmertForPreTraining.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    batch = make_batch()
    labels = labels_of(batch, torch.float32)
    with torch.no_grad():
        words = theirs.eval()(**inputs_of(batch, torch.float32), labels=labels["labels"])
        losses = task.losses(batch)
    assert difference(losses["mmm_text"].sum / losses["mmm_text"].count, words.loss) < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer("A red cats")["input_ids"] == [2, 5, 6, 7, 8, 3]
    convert_folder(tmp_path / "out", tmp_path / "ours")
    fresh = build_task(config)
    load_initial_weights(fresh, str(tmp_path / "ours"), "lxmert")
    assert all(torch.equal(own, task.state_dict()[name]) for name, own in fresh.state_dict().items())
    assert configuration.load(tmp_path / "ours" / "config.json").model == config.model


def test_heads_without_labels_here_are_dropped_and_a_bare_model_has_none(tmp_path):
    """The published file predicts answers and attributes, too; a run without a head exports a LxmertModel."""
    transformers = pytest.importorskip("transformers")
    config, task = run_of(tmp_path)
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    more = {
        "answer_head.logit_fc.0.weight": torch.ones(2, 2),
        "obj_predict_head.decoder_dict.attr.bias": torch.ones(2),
    }
    found = LAYOUTS.read(settings, tensors | more, "here")
    assert found.dropped == tuple(sorted(more)) and found.weights.keys() == task.state_dict().keys()

    some = {name: own for name, own in config.objectives.items() if name != "itm"}
    alone = dataclasses.replace(config, objectives=some)
    their_files.export(alone, build_task(alone).state_dict(), tmp_path / "bare")
    theirs, report = transformers.AutoModel.from_pretrained(
        tmp_path / "bare", local_files_only=True, output_loading_info=True
    )
    assert type(theirs).__name__ == "LxmertModel" and not any(report.values()), report
    bare = their_lxmert(config, "LxmertModel")
    weights = LAYOUTS.read(settings, dict(bare.state_dict()), "here").weights
    assert weights.keys() == {name for name in task.state_dict() if name.startswith("model.")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"visual_pos_dim": 5}, "visual_pos_dim is 5; only 4 is supported"),
        ({"x_layers": 3}, "tensor 'lxmert.encoder.x_layers.2"),
        ({"num_object_labels": 7}, "'obj_predict_head.decoder_dict.obj.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    config, task = run_of(tmp_path)
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        LAYOUTS.read(settings | changes, tensors, "here")


def test_another_eps_cannot_be_exported(tmp_path):
    config, task = run_of(tmp_path)
    text = dataclasses.replace(config.model.text, layer_norm_eps=1e-6)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
    with pytest.raises(CheckpointError, match="layer_norm_eps is 1e-06, but transformers' LXMERT has 1e-12"):
        LAYOUTS.write(other, task.state_dict())
