"""Small BERTs of ours and of transformers with the same random weights, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.bert.hf import LAYOUTS
from flava_ds.families.bert.task import BertTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig

CLS, SEP, MASK = 101, 102, 103
IGNORED = -100


def tiny_config(**changed) -> Config:
    """A BERT of three layers, 200 entries, heads of 8."""
    text = BertTextConfig(
        vocab_size=200,
        max_position_embeddings=32,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
    )
    objectives = {"mlm": MaskedTextConfig(tied_decoder=True), "nsp": NextSentenceConfig()}
    return Config(name="tiny", model=BertConfig(text=text), **({"objectives": objectives} | changed))


def random_texts(lengths: Sequence[int], draw: torch.Generator) -> list[list[int]]:
    """Texts of so many tokens, [CLS] and [SEP] among them."""
    return [[CLS, *torch.randint(104, 200, (n - 2,), generator=draw).tolist(), SEP] for n in lengths]


def packed_texts(texts: list[list[int]]) -> dict[str, Tensor]:
    """Texts as the collator packs them, whole and with every third token masked if it is a word."""
    ids = torch.tensor([token for text in texts for token in text])
    rows = torch.tensor([row for row in range(1, len(ids), 3) if ids[row] > MASK])
    return {
        "input_ids": ids,
        "input_ids_masked": ids.index_fill(0, rows, MASK),
        "cu_seqlens": torch.tensor([0, *map(len, texts)]).cumsum(0).int(),
        "mlm_rows": rows,
        "mlm_labels": ids[rows],
    }


def make_batch(segments=((3, 4), (7, 1), (5, 0), (2, 6)), seed: int = 0) -> Batch:
    """A batch as the collator makes it; texts without a second segment are not asked for it."""
    draw = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(104, 200, (count,), generator=draw).tolist()

    texts = [[CLS, *words(a), SEP] + ([*words(b), SEP] if b else []) for a, b in segments]
    types = [[0] * (a + 2) + [1] * (b + 1 if b else 0) for a, b in segments]
    asked = [row for row, (_, b) in enumerate(segments) if b]
    tensors = {
        **packed_texts(texts),
        "token_types": torch.tensor([kind for own in types for kind in own]),
        "nsp_samples": torch.tensor(asked),
        "nsp_labels": torch.tensor([row % 2 for row in asked]),
    }
    longest = max(map(len, texts))
    return Batch(
        kind="text", source="random", size=len(texts), tensors=tensors, numbers={"max_seqlen": longest}
    )


def padded(batch: Batch, packed: Tensor, fill: int) -> Tensor:
    """Pads a packed tensor on the right: [T] -> [b t]."""
    parts = packed.split(batch["cu_seqlens"].diff().tolist())
    return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Their inputs and labels for a batch."""
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[batch["mlm_rows"]] = batch["mlm_labels"]
    asked = torch.full((batch.size,), IGNORED)
    asked[batch["nsp_samples"]] = batch["nsp_labels"]
    return {
        "input_ids": padded(batch, batch["input_ids_masked"], 0),
        "token_type_ids": padded(batch, batch["token_types"], 0),
        "attention_mask": padded(batch, torch.ones_like(labels), 0),
        "labels": padded(batch, labels, IGNORED),
        "next_sentence_label": asked,
    }


def randomize(model: nn.Module, std: float = 0.1, seed: int = 0) -> nn.Module:
    """Draws every parameter, biases and gains too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std, generator=draw)
            if "orm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def their_bert(config: Config, kind: str = "BertForPreTraining") -> nn.Module:
    """transformers' model of the same shape, spelled out by hand."""
    transformers = pytest.importorskip("transformers")
    text = config.model.text
    theirs = transformers.BertConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        intermediate_size=text.intermediate_size,
        max_position_embeddings=text.max_position_embeddings,
        type_vocab_size=text.type_vocab_size,
        layer_norm_eps=text.layer_norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return randomize(getattr(transformers, kind)(theirs))


def own_tensors(theirs: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the second names of tied tensors."""
    return {name: value for name, value in values.items() if not name.startswith("cls.predictions.decoder.")}


def our_model(config: Config, theirs: nn.Module) -> BertTask:
    """Builds our model with their weights."""
    task = build_task(config).to(next(theirs.parameters()).dtype)
    weights = own_tensors(theirs, dict(theirs.state_dict()))
    task.load_state_dict(to_ours(weights, LAYOUTS.entries(config.model, heads=True), "theirs"))
    return task


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest absolute difference over the largest absolute value of theirs."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max())
