"""Small ALBEFs of ours, their parts in transformers with the same random weights, and batches for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families.bert.bert_peers import packed_texts, random_texts, randomize
from torch import Tensor, nn

from flava_ds.batch import Batch
from flava_ds.config import Config, SourceConfig
from flava_ds.config.data import DataConfig
from flava_ds.config.tree import TrainingConfig
from flava_ds.data.plan import Draft
from flava_ds.families.albef.config import AlbefConfig, AlbefImageConfig, AlbefTextConfig
from flava_ds.families.albef.task import AlbefTask
from flava_ds.objectives.distilled_text import DistilledTextConfig
from flava_ds.objectives.hard_matching import HardMatchingConfig, NegativeDraws
from flava_ds.objectives.momentum_contrastive import MomentumContrastiveConfig

QUEUE = 8


def tiny_model() -> AlbefConfig:
    """An ALBEF of two layers an encoder, 3 x 3 patches, 200 entries, heads of 8."""
    shape = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2}
    return AlbefConfig(
        image=AlbefImageConfig(image_size=12, patch_size=4, **shape),
        text=AlbefTextConfig(vocab_size=200, max_position_embeddings=32, **shape),
        fusion_layers=2,
        projection_dim=16,
        teacher_momentum=0.9,
    )


def tiny_config(batch_size: int = 4, **changed) -> Config:
    """The three objectives, the teacher's share at once."""
    objectives = {
        "itc": MomentumContrastiveConfig(queue_size=QUEUE),
        "itm": HardMatchingConfig(),
        "mlm": DistilledTextConfig(),
    }
    data = DataConfig(sources={"pairs": SourceConfig(kind="pair", shards="nowhere")})
    training = TrainingConfig(global_batch_size=batch_size)
    settings = {"model": tiny_model(), "objectives": objectives, "data": data, "training": training}
    return Config(name="tiny", **(settings | changed))


def make_batch(lengths=(5, 12, 2, 9), seed: int = 0, step: int = 0) -> Batch:
    """A batch as the collator makes it."""
    draw = torch.Generator().manual_seed(seed)
    texts = random_texts(lengths, draw)
    seeds = np.arange(len(texts), dtype=np.uint64) + np.uint64(100 * seed)
    drawn = NegativeDraws()(Draft(seeds=seeds, matched=np.ones(len(texts), dtype=bool)))
    tensors = {
        "pixel_values": torch.randint(0, 256, (len(texts), 3, 12, 12), generator=draw, dtype=torch.uint8),
        **packed_texts(texts),
        **{name: torch.from_numpy(value) for name, value in drawn.items()},
    }
    return Batch(
        kind="pair",
        source="random",
        size=len(texts),
        tensors=tensors,
        numbers={"max_seqlen": max(lengths)},
        step=step,
    )


@torch.no_grad()
def completed(task: AlbefTask, *batches: Batch) -> list[Batch]:
    """What the engine does with a step's micro-batches."""
    of_step = [task.complete(batch) for batch in batches]
    for state in task.states.values():
        of_step = state.complete_step(of_step)
    return of_step


def their_parts(config: AlbefConfig) -> tuple[nn.Module, nn.Module]:
    """transformers' BERT of the text encoder's layers, and BLIP's text model of those that fuse."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    text = config.text
    shape = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    bert = transformers.BertModel(
        transformers.BertConfig(num_hidden_layers=text.num_hidden_layers, **shape), add_pooling_layer=False
    )
    blip = transformers.BlipTextConfig(
        num_hidden_layers=config.fusion_layers, encoder_hidden_size=text.hidden_size, is_decoder=True, **shape
    )
    return randomize(bert).eval(), randomize(BlipTextModel(blip, add_pooling_layer=False), seed=1).eval()


def by_our_names(bert: dict[str, Tensor], blip: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors (weights or gradients) by our names, keys and values joined as ours are."""
    tables = {
        "words.weight": "word_embeddings.weight",
        "positions.weight": "position_embeddings.weight",
        "token_types.weight": "token_type_embeddings.weight",
        "norm.weight": "LayerNorm.weight",
        "norm.bias": "LayerNorm.bias",
    }
    found = {f"text_encoder.embeddings.{ours}": bert[f"embeddings.{own}"] for ours, own in tables.items()}
    for part, theirs in (("text_encoder", bert), ("fusion", blip)):
        layers = {name.split(".")[2] for name in theirs if name.startswith("encoder.layer.")}
        for layer in layers:
            for kind in ("weight", "bias"):
                ours = f"{part}.transformer.blocks.{layer}."
                own = {
                    name.removeprefix(f"encoder.layer.{layer}.").removesuffix(f".{kind}"): tensor
                    for name, tensor in theirs.items()
                    if name.startswith(f"encoder.layer.{layer}.") and name.endswith(kind)
                }
                found |= {ours + f"{name}.{kind}": tensor for name, tensor in _of_layer(own).items()}
    return found


def _of_layer(own: dict[str, Tensor]) -> dict[str, Tensor]:
    def several(prefix: str, *names: str) -> Tensor:
        return torch.cat([own[f"{prefix}.self.{name}"] for name in names])

    found = {
        "attention.qkv": several("attention", "query", "key", "value"),
        "attention.output": own["attention.output.dense"],
        "attention_norm": own["attention.output.LayerNorm"],
        "mlp_up": own["intermediate.dense"],
        "mlp_down": own["output.dense"],
        "mlp_norm": own["output.LayerNorm"],
    }
    if "crossattention.self.query" in own:
        found |= {
            "cross_attention.query": own["crossattention.self.query"],
            "cross_attention.key_value": several("crossattention", "key", "value"),
            "cross_attention.output": own["crossattention.output.dense"],
            "cross_norm": own["crossattention.output.LayerNorm"],
        }
    return found
