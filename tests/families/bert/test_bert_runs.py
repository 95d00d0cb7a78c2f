"""BERT's batches, and BERT through the real trainer: one rank and two, every ZeRO stage, accumulation."""

import functools

import pytest
from real_runs import check_losses_of_every_split, every_stage, family_config

from flava_ds.config.encoders import BertTextConfig
from flava_ds.families.bert.config import BertConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.objectives.next_sentence import NextSentenceConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.synthetic import batch_of


def test_the_planner_sees_two_segments_in_every_text():
    config = RECIPES["demo_bert"]()
    plan = config.model.plan(config, config.data.sources["text"])
    batch = batch_of(plan, "text", lengths_of(config, None)["text"], 6)
    halves = [int(own.sum()) for own in batch["token_types"].split(batch["cu_seqlens"].diff().tolist())]
    assert batch["nsp_samples"].tolist() == [*range(6)] and halves == [24] * 6
    work = {part.name: part.flops for part in config.model.build(config).passes(batch)}
    assert work["nsp"] == 6 * 2 * 256 * 258


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    """With dropout."""
    text = BertTextConfig(
        vocab_size=200,
        max_position_embeddings=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
        hidden_dropout=0.1,
    )
    masked = MaskedTextConfig(tied_decoder=True, mask_probability=0.4)
    make = functools.partial(
        family_config,
        tmp_path,
        kind="text",
        model=BertConfig(text=text),
        objectives={"mlm": masked, "nsp": NextSentenceConfig()},
    )
    check_losses_of_every_split(every_stage(make), told)
