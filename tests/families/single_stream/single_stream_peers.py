"""Small batches of words and regions, and what transformers' BERT makes of the same embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.bert.bert_peers import difference, their_bert
from families.family_checks import numbered_words, step
from told import Told
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config
from flava_ds.config.encoders import BertTextConfig, RegionsConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.bert.hf import LAYOUTS
from flava_ds.layouts import to_ours, to_theirs

CLS, SEP, MASK = 101, 102, 103
WIDTH, CLASSES = 10, 7
TEXT = BertTextConfig(
    vocab_size=200,
    max_position_embeddings=32,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
)
IMAGE = RegionsConfig(feature_size=WIDTH, num_classes=CLASSES)
EXACT = [(torch.float32, 1e-5, 3e-5), (torch.float64, 1e-12, 1e-11)]
"""Types, and the largest differences of states and losses, and of gradients (`apart_of`)."""


def make_batch(
    texts: Sequence[Sequence[int]] = ((3,), (7,), (0,), (5,)),
    regions: Sequence[int] = (4, 1, 6, 2),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Batch:
    """A batch as the collator makes it: `texts` are the words of each segment of each text, `regions` the
    regions of each image. Every second text matches.
    """
    draw = torch.Generator().manual_seed(seed)
    own, other = ([words_of(text, draw) for text in texts] for _ in range(2))
    ids, total = torch.cat(own), sum(regions)
    rows = torch.tensor([row for row in range(1, len(ids), 2) if ids[row] > MASK])
    corners = torch.rand(total, 2, 2, generator=draw, dtype=dtype).sort(dim=1).values
    starts = np.cumsum([0, *regions])[:-1]
    boxes = corners.flatten(1)
    boxes[starts] = torch.tensor([0, 0, 1, 1], dtype=dtype)
    masked = torch.tensor(
        [start + place for start, n in zip(starts, regions, strict=True) for place in range(1, n, 2)]
    )
    lengths, counts = torch.tensor([len(text) for text in own]), torch.tensor(regions)
    types = [torch.cat([torch.full((n + 1 + (not k),), k) for k, n in enumerate(text)]) for text in texts]
    tensors = {
        "input_ids": ids,
        "input_ids_masked": ids.index_fill(0, rows, MASK),
        "cu_seqlens": ends(lengths),
        "token_types": torch.cat(types),
        "mlm_rows": rows,
        "mlm_labels": ids[rows],
        "matching_input_ids": torch.cat(other),
        "matching_cu_seqlens": ends(lengths),
        "itm_labels": torch.arange(len(texts)) % 2,
        "wpa_rows": (torch.cat(other) > MASK).nonzero().flatten(),
        "region_features": torch.randn(total, WIDTH, generator=draw, dtype=dtype),
        "region_boxes": boxes,
        "region_classes": torch.rand(total, CLASSES, generator=draw, dtype=dtype).softmax(-1),
        "region_cu_seqlens": ends(counts),
        "region_masked_rows": masked,
        "region_hidden_rows": masked[:-1],
    }
    joint = int((lengths + counts).max())
    numbers = {"max_seqlen": int(lengths.max()), "region_max_seqlen": max(regions), "joint_max_seqlen": joint}
    numbers |= {f"matching_{name}": numbers[name] for name in ("max_seqlen", "joint_max_seqlen")}
    return Batch(kind="pair", source="random", size=len(texts), tensors=tensors, numbers=numbers)


def words_of(text: Sequence[int], draw: torch.Generator) -> Tensor:
    """A text with so many words in each segment."""
    parts = [torch.tensor([CLS])]
    for count in text:
        parts += [torch.randint(MASK + 1, 200, (count,), generator=draw), torch.tensor([SEP])]
    return torch.cat(parts)


def ends(lengths: Tensor) -> Tensor:
    return F.pad(lengths, (1, 0)).cumsum(0).int()


class Peer:
    """transformers' BertModel with a task's weights, and copies of the task's other weights, by name."""

    def __init__(self, task: nn.Module) -> None:
        self.config = Config(name="bert", model=BertConfig(text=task.model.config.text))
        own = {name: value.detach() for name, value in task.named_parameters()}
        table = LAYOUTS.entries(self.config.model, heads=False)
        self.table = tuple(entry for entry in table if entry.ours in own)  # VL-BERT has no pooler
        shared = {entry.ours for entry in self.table}
        dtype = next(iter(own.values())).dtype
        self.bert = their_bert(self.config, "BertModel").to(dtype).eval()
        theirs = to_theirs({name: own[name] for name in shared}, self.table, "ours")
        missing = self.bert.load_state_dict(theirs, strict=False).missing_keys
        assert all(name.endswith("_ids") or name.startswith("pooler.") for name in missing)
        self.rest = {
            name: value.clone().requires_grad_() for name, value in own.items() if name not in shared
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.rest[name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Applies a linear layer by its name."""
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Applies a LayerNorm by its name."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-12)

    def words(self, ids: Tensor, cu_seqlens: Tensor, types: Tensor | None = None) -> list[Tensor]:
        """Embeds each text: b of [t d]."""
        lengths = cu_seqlens.diff().tolist()
        kinds = (torch.zeros_like(ids) if types is None else types).split(lengths)
        return [
            self.bert.embeddings(input_ids=own[None], token_type_ids=kind[None])[0]
            for own, kind in zip(ids.split(lengths), kinds, strict=True)
        ]

    def states(self, sequences: Sequence[Tensor]) -> Tensor:
        """Encodes sequences that are padded on the right: the states of all, packed."""
        padded = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
        there = nn.utils.rnn.pad_sequence(
            [torch.ones(len(own)) for own in sequences], batch_first=True
        ).bool()
        mask = torch.zeros(there.shape, dtype=padded.dtype).masked_fill(~there, torch.finfo(padded.dtype).min)
        found = self.bert.encoder(padded, attention_mask=mask[:, None, None])
        return found.last_hidden_state[there]

    def head(self, name: str, x: Tensor) -> Tensor:
        """Applies dense, GELU and LayerNorm of a head."""
        return self.norm(f"{name}.norm", F.gelu(self.linear(f"{name}.dense", x)))

    def word_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy of masked words with a tied decoder."""
        name = next(
            own for own in self.rest if own.endswith("mlm.head.bias") or own.endswith("text.head.bias")
        )
        name = name.removesuffix(".bias")
        table = self.bert.embeddings.word_embeddings.weight
        return F.cross_entropy(F.linear(self.head(name, states), table, self[f"{name}.bias"]), labels)

    def class_scores(self, states: Tensor) -> Tensor:
        """Returns the logarithms of masked regions' predicted classes."""
        name = "objectives.mrc.head"
        return self.linear(f"{name}.decoder", self.head(name, states)).log_softmax(-1)

    def class_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean divergence of masked regions' classes."""
        told = self.class_scores(states)
        return F.kl_div(told, targets, reduction="batchmean")

    def gradients(self) -> dict[str, Tensor | None]:
        """Returns all gradients by our names."""
        theirs = {
            name: torch.zeros_like(own) if own.grad is None else own.grad
            for name, own in self.bert.named_parameters()
        }
        kept = {name: theirs[name] for entry in self.table for name in entry.theirs}
        return to_ours(kept, self.table, "their gradients") | {
            name: own.grad for name, own in self.rest.items()
        }


def joined(words: Sequence[Tensor], regions: Tensor, cu_seqlens: Tensor) -> list[Tensor]:
    """Lays each text before its regions."""
    return [
        torch.cat([own, seen])
        for own, seen in zip(words, regions.split(cu_seqlens.diff().tolist()), strict=True)
    ]


def rows_of(batch: Batch, name: str, prefix: str = "") -> Tensor:
    """Returns the joint rows of "tokens" or "regions", packed."""
    texts, regions = (batch[own].diff().tolist() for own in (f"{prefix}cu_seqlens", "region_cu_seqlens"))
    kinds = torch.cat([torch.tensor([0] * t + [1] * o) for t, o in zip(texts, regions, strict=True)])
    return (kinds == (name == "regions")).nonzero().flatten()


def check_against(
    task: nn.Module,
    batch: Batch,
    their_losses: Callable[[Peer, Batch], dict[str, Tensor]],
    exact: tuple[torch.dtype, float, float],
    told: Told,
) -> None:
    """Compares every loss of a task on a batch, and every gradient of their weighted sum, with a peer's."""
    dtype, close, gradients = exact
    told.parity(task.model.config.type, "BertModel and plain torch", dtype, close, gradients)
    peer = Peer(task)
    losses, expected = task.losses(batch), their_losses(peer, batch)
    assert losses.keys() == expected.keys()
    for name, own in losses.items():
        assert told.output(difference(own.sum / own.count, expected[name])) <= close, name
    step(task, batch).backward()
    sum(task.objectives[name].weight * loss for name, loss in expected.items()).backward()
    found = {name: own.grad for name, own in task.named_parameters()}
    theirs = peer.gradients()
    assert found.keys() == theirs.keys()
    apart = apart_of({name: own for name, own in found.items() if has_values(own)}, theirs)
    zero = found.keys() - apart.keys()
    assert not any(has_values(theirs[name]) for name in zero), zero
    told.gradients(apart, gradients)
    assert apart.keys() == {name for name, kinds in task.users().items() if batch.kind in kinds}, (
        "users() says otherwise"
    )


def has_values(gradient: Tensor | None) -> bool:
    """Tells whether there is a gradient that is not zero."""
    return gradient is not None and bool(gradient.abs().max() > 0)


def apart_of(ours: dict[str, Tensor], theirs: dict[str, Tensor | None]) -> dict[str, float]:
    """Returns how far gradients lie apart, by their own size; in fp32, whose sums over rows cancel, by that
    of the largest.
    """
    sizes = {name: float(own.abs().max()) for name, own in theirs.items() if own is not None}
    largest = max(sizes.values())
    return {
        name: difference(own, theirs[name]) * (sizes[name] / largest if own.dtype == torch.float32 else 1)
        for name, own in ours.items()
    }


def word_file(folder) -> str:
    """A vocabulary of 200 words whose special tokens are where the batches have them."""
    pytest.importorskip("tokenizers")
    path = folder / "vocab.txt"
    path.write_text("\n".join(numbered_words()) + "\n")
    return str(path)
