"""BERT written for transformers and opened there, and read back from its files, old ones too."""

import dataclasses

import pytest
import torch
from families.bert.bert_peers import difference, inputs_of, make_batch, randomize, their_bert, tiny_config
from families.family_checks import with_words
from safetensors.torch import save_file

from flava_ds import config as configuration
from flava_ds.checkpoints.initial_weights import load_initial_weights
from flava_ds.errors import CheckpointError
from flava_ds.families.bert.capabilities import BertScorer, offers
from flava_ds.families.bert.hf import LAYOUTS
from flava_ds.families.bert.task import build_task
from flava_ds.hf import foreign as their_files
from flava_ds.hf.convert import convert_folder


@pytest.fixture
def run(tmp_path):
    """A configuration with a vocabulary of its own, and the task that it builds."""
    config = with_words(tiny_config(), tmp_path)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, initializer_range=0.05))
    return config, randomize(build_task(config))


def test_an_exported_folder_opens_in_transformers_and_comes_back(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, task = run
    their_files.export(config, task.state_dict(), tmp_path / "out")
    theirs, report = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    batch = make_batch()
    with torch.no_grad():
        output = theirs.eval()(**inputs_of(batch))
        losses = {name: loss.sum / loss.count for name, loss in task.losses(batch).items()}
    assert difference(sum(losses.values()), output.loss) < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer("A red cats")["input_ids"] == [2, 5, 6, 7, 8, 3]
    convert_folder(tmp_path / "out", tmp_path / "ours")
    fresh = build_task(config)
    load_initial_weights(fresh, str(tmp_path / "ours"), "bert")
    assert all(torch.equal(tensor, task.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    assert configuration.load(tmp_path / "ours" / "config.json").model == config.model


def test_heads_are_found_by_the_types_of_their_objectives(run):
    config, task = run
    names = {"mlm": "words", "nsp": "mlm"}
    other = dataclasses.replace(
        config, objectives={names[name]: own for name, own in config.objectives.items()}
    )
    state = {
        name.replace("objectives.nsp.", "objectives.mlm.")
        if ".nsp." in name
        else name.replace("objectives.mlm.", "objectives.words."): own
        for name, own in task.state_dict().items()
    }
    renamed = build_task(other)
    renamed.load_state_dict(state)
    settings, tensors = LAYOUTS.write(other, state)
    assert settings["architectures"] == ["BertForPreTraining"]
    assert all(
        torch.equal(tensors[name], own) for name, own in LAYOUTS.write(config, task.state_dict())[1].items()
    )
    [scorer] = [own for own in offers(renamed, other)[0] if isinstance(own, BertScorer)]
    assert scorer.head is renamed.objectives["words"].head


def test_a_run_without_both_heads_becomes_a_bare_model(run, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    config, task = run
    config = dataclasses.replace(config, objectives={"mlm": config.objectives["mlm"]})
    their_files.export(config, task.state_dict(), tmp_path / "out")
    assert "written as BertModel, without the heads of mlm and nsp" in caplog.text
    theirs, report = transformers.AutoModel.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert type(theirs).__name__ == "BertModel" and not any(report.values()), report
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    weights = LAYOUTS.read(settings, tensors, "here").weights
    assert weights.keys() == {name for name in task.state_dict() if name.startswith("model.")}
    assert all(torch.equal(tensor, task.state_dict()[name]) for name, tensor in weights.items())


def test_old_files_are_read(run, tmp_path):
    """The first published files: gamma and beta, position ids, and the decoder under its second name."""
    config, _ = run
    theirs = their_bert(config)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): own
        for name, own in theirs.state_dict().items()
    }
    old = {
        name: own.clone() for name, own in {**old, "bert.embeddings.position_ids": torch.arange(4)}.items()
    }
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors")
    theirs.config.save_pretrained(tmp_path / "old")
    convert_folder(tmp_path / "old", tmp_path / "ours")
    fresh = build_task(config)
    load_initial_weights(fresh, str(tmp_path / "ours"), "bert")
    batch = make_batch()
    with torch.no_grad():
        loss = sum(loss.sum / loss.count for loss in fresh.losses(batch).values())
        assert difference(loss, theirs(**inputs_of(batch)).loss) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_hidden_layers": 4}, "tensor 'bert.encoder.layer.3"),
        ({"vocab_size": 300}, "'bert.embeddings.word_embeddings.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_named(run, changes, message):
    config, task = run
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    with pytest.raises(CheckpointError, match=f"here: .*{message}"):
        LAYOUTS.read(settings | changes, tensors, "here")


def test_a_decoder_that_is_not_tied_is_refused(run):
    config, task = run
    settings, tensors = LAYOUTS.write(config, task.state_dict())
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    with pytest.raises(CheckpointError, match="'cls.predictions.decoder.weight' differs from"):
        LAYOUTS.read(settings, tensors, "here")
