"""VisualBERT against transformers' VisualBertForPreTraining on random weights, and in its layout."""

import dataclasses

import pytest
import torch
from families.bert.bert_peers import difference, randomize
from families.family_checks import step
from families.single_stream.single_stream_peers import (
    EXACT,
    IMAGE,
    TEXT,
    WIDTH,
    apart_of,
    make_batch,
    rows_of,
    word_file,
)
from torch import nn

from flava_ds.config import Config, DataConfig
from flava_ds.errors import CheckpointError
from flava_ds.families.single_stream.task import SingleStreamTask, build_task
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.families.visualbert.hf import LAYOUTS
from flava_ds.hf.foreign import export, open_folder
from flava_ds.layouts import to_ours
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.next_sentence import SentenceImageConfig
from flava_ds.recipes import RECIPES

IGNORED = -100
OBJECTIVES = {
    "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True),
    "sentence_image": SentenceImageConfig(),
}
TIED = "cls.predictions.decoder."


def tiny_config(**changed) -> Config:
    return Config(
        name="tiny", model=VisualBertConfig(image=IMAGE, text=TEXT), objectives=OBJECTIVES, **changed
    )


def their_visualbert(kind: str = "VisualBertForPreTraining") -> nn.Module:
    """transformers' model of the same shape, spelled out by hand."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.VisualBertConfig(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.hidden_size,
        visual_embedding_dim=WIDTH,
        num_hidden_layers=TEXT.num_hidden_layers,
        num_attention_heads=TEXT.num_attention_heads,
        intermediate_size=TEXT.intermediate_size,
        max_position_embeddings=TEXT.max_position_embeddings,
        layer_norm_eps=TEXT.layer_norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return randomize(getattr(transformers, kind)(theirs), std=0.05)


def pairs(dtype: torch.dtype = torch.float32):
    """Pairs of captions, of which one has a single segment and is not asked."""
    batch = make_batch(((3, 4), (7, 1), (5,), (2, 6)), dtype=dtype)
    return batch.having(nsp_samples=torch.tensor([0, 1, 3]), nsp_labels=torch.tensor([1, 0, 1]))


def inputs_of(batch) -> dict[str, torch.Tensor]:
    """Their inputs and labels: texts and regions are padded apart, and labels cover both."""
    texts, counts = batch["cu_seqlens"].diff().tolist(), batch["region_cu_seqlens"].diff().tolist()

    def padded(packed, lengths, fill=0):
        return nn.utils.rnn.pad_sequence(packed.split(lengths), batch_first=True, padding_value=fill)

    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[batch["mlm_rows"]] = batch["mlm_labels"]
    asked = torch.full((batch.size,), IGNORED)
    asked[batch["nsp_samples"]] = batch["nsp_labels"]
    visual = padded(batch["region_features"], counts)
    return {
        "input_ids": padded(batch["input_ids_masked"], texts),
        "token_type_ids": padded(batch["token_types"], texts),
        "attention_mask": padded(torch.ones_like(labels), texts),
        "visual_embeds": visual,
        "visual_attention_mask": padded(torch.ones(sum(counts), dtype=torch.long), counts),
        "labels": nn.functional.pad(padded(labels, texts, IGNORED), (0, visual.shape[1]), value=IGNORED),
        "sentence_image_labels": asked,
    }


def own_tensors(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if not name.startswith(TIED)}


@pytest.mark.parametrize("exact", EXACT, ids=["fp32", "fp64"])
def test_transformers_agree(exact, told):
    dtype, close, gradients = exact
    told.parity("visualbert", "VisualBertForPreTraining", *exact)
    theirs, config, batch = their_visualbert().to(dtype), tiny_config(), pairs(dtype)
    task, table = build_task(config).to(dtype), LAYOUTS.entries(config.model, heads=True)
    task.load_state_dict(to_ours(own_tensors(dict(theirs.state_dict())), table, "theirs"))
    inputs = inputs_of(batch)
    output = theirs(**inputs, output_hidden_states=True)
    hidden = task.model.encode(batch, {"multimodal_masked"})["multimodal_masked"].last_hidden_state()
    words, seen = output.hidden_states[-1].split(
        [inputs[n].shape[1] for n in ("input_ids", "visual_embeds")], 1
    )
    for name, states, mask in (
        ("tokens", words, "attention_mask"),
        ("regions", seen, "visual_attention_mask"),
    ):
        assert told.output(difference(hidden[rows_of(batch, name)], states[inputs[mask].bool()])) <= close, (
            name
        )
    loss = step(task, batch)
    assert told.output(difference(loss, output.loss)) <= close
    loss.backward()
    output.loss.backward()
    found = {
        name: torch.zeros_like(own) if own.grad is None else own.grad
        for name, own in theirs.named_parameters()
    }
    expected = to_ours(own_tensors(found), table, "their gradients")
    ours = {name: parameter.grad for name, parameter in task.named_parameters()}
    assert ours.keys() == expected.keys()
    apart = apart_of(ours, expected)
    told.gradients(apart, gradients)


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        task = SingleStreamTask(RECIPES["visualbert_base"]())
    assert sum(parameter.numel() for parameter in task.parameters()) == 112_074_812


@pytest.mark.parametrize("kind", ["VisualBertForPreTraining", "VisualBertModel"])
def test_an_export_is_what_was_imported(kind, tmp_path):
    """Both directions, to the bit; a model without heads comes back as such."""
    theirs = their_visualbert(kind)
    heads = kind == "VisualBertForPreTraining"
    theirs.save_pretrained(tmp_path / "theirs")
    found = open_folder(tmp_path / "theirs")
    expected = VisualBertConfig(text=TEXT, image=dataclasses.replace(IMAGE, num_classes=1601))
    assert found.model == expected
    objectives = found.objectives if heads else {"sentence_image": found.objectives["sentence_image"]}
    data = DataConfig(vocabulary=word_file(tmp_path))
    config = dataclasses.replace(tiny_config(), model=found.model, objectives=objectives, data=data)
    export(config, found.weights, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    for name, value in own_tensors(dict(theirs.state_dict())).items():
        assert torch.equal(again.state_dict()[name], value), name
    assert (tmp_path / "ours" / "vocab.txt").read_text().split() == (
        tmp_path / "vocab.txt"
    ).read_text().split()


def test_what_it_cannot_compute_is_refused():
    with pytest.raises(CheckpointError, match="file: bypass_transformer is True; only False is supported"):
        LAYOUTS.read({"bypass_transformer": True}, {}, "file")
