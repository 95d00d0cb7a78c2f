"""ViLT's batches, and ViLT through the real trainer: ranks, ZeRO stages, accumulation."""

import functools
import math

import numpy as np
import pytest
import torch
from real_runs import check_losses_of_every_split, every_stage, family_config, losses_of

from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader
from flava_ds.families.vilt.config import StreamConfig, ViltConfig, WordsConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.recipes import RECIPES
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.synthetic import batch_of


def test_the_planner_sees_both_passes():
    config = RECIPES["demo_vilt"]()
    plan = config.model.plan(config, config.data.sources["pair"])
    batch = batch_of(plan, "pair", lengths_of(config, None)["pair"], 6)
    assert torch.equal(batch["matching_cu_seqlens"], batch["cu_seqlens"])
    work = {part.name: part.flops for part in config.model.build(config).passes(batch)}
    assert 1 < work["multimodal"] / work["multimodal_masked"] < 1.2, "one has all rows read"
    assert work["itm"] == 6 * 2 * 192 * 194


def vilt_config(folder, name: str, **how):
    """A tiny ViLT with dropout over the pairs of the written world, in fp32."""
    image = StreamConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
        hidden_dropout=0.1,
    )
    objectives = {
        "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True),
        "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
        "wpa": WordPatchAlignmentConfig(weight=0.1),
    }
    model = ViltConfig(image=image, text=WordsConfig(vocab_size=200, max_position_embeddings=20))
    return family_config(folder, name, "pair", model=model, objectives=objectives, **how)


def texts(batch, prefix: str = "") -> list[list[int]]:
    lengths = batch[f"{prefix}cu_seqlens"].diff().tolist()
    return [own.tolist() for own in batch[f"{prefix}input_ids"].split(lengths)]


def test_every_split_of_a_batch_has_the_same_texts_and_only_mismatches_have_others(tmp_path):
    """A sample's own text is masked and predicted in any case; half of the second texts are others'."""
    config = vilt_config(tmp_path, "x")
    reader = BatchReader(config, IndexedShards(config, "pair"))
    whole = reader.batch(np.arange(8, 16))
    parts = [reader.batch(np.arange(start, start + 2)) for start in range(8, 16, 2)]
    own, matching, matched = texts(whole), texts(whole, "matching_"), whole["itm_labels"].tolist()
    assert [text for part in parts for text in texts(part)] == own
    assert [text for part in parts for text in texts(part, "matching_")] == matching
    assert [label for part in parts for label in part["itm_labels"].tolist()] == matched
    assert [one == other for one, other in zip(own, matching, strict=True)] == [bool(own) for own in matched]
    assert 0 < sum(matched) < 8 and all(text in own for text in matching)
    sample = torch.repeat_interleave(torch.arange(8), whole["cu_seqlens"].diff().long())
    assert set(sample[whole["mlm_rows"]].tolist()) == set(range(8))
    assert whole["wpa_rows"].shape[0] == sum(map(len, matching)) - 16
    assert whole.numbers["matching_max_seqlen"] == max(map(len, matching))


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    runs = every_stage(functools.partial(vilt_config, tmp_path), ("zero1", "zero3"))
    check_losses_of_every_split(runs, told)
    first = losses_of(runs[0][0])
    assert first[0] == pytest.approx(math.log(200), abs=0.2)
    assert first[1] == pytest.approx(math.log(2), abs=0.2)
