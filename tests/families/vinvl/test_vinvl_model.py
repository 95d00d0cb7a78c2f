"""VinVL against transformers' BERT on the same embeddings, its counts, and what its batches contrast."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.bert.bert_peers import randomize
from families.single_stream.single_stream_peers import (
    EXACT,
    IMAGE,
    TEXT,
    Peer,
    check_against,
    joined,
    make_batch,
    rows_of,
)
from families.single_stream.test_single_stream_runs import make
from region_files import member, regions, tags, write_regions
from safetensors.numpy import save

from flava_ds.config import Config
from flava_ds.data.first_look import look_over
from flava_ds.data.reader import BatchReader
from flava_ds.data.sources import open_source
from flava_ds.errors import ConfigError, DataError
from flava_ds.families.single_stream.task import SingleStreamTask, build_task
from flava_ds.families.vinvl.config import VinvlConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.tag_contrast import TagContrastConfig
from flava_ds.recipes import RECIPES

OBJECTIVES = {"mmm_text": MultimodalMaskedTextConfig(tied_decoder=True), "tag_contrast": TagContrastConfig()}


def tiny_config(**changed) -> Config:
    return Config(
        name="tiny", model=VinvlConfig(image=IMAGE, text=TEXT), **({"objectives": OBJECTIVES} | changed)
    )


def their_losses(peer: Peer, batch) -> dict[str, torch.Tensor]:
    """The published model and losses, in plain torch around transformers' encoder."""
    boxes = batch["region_boxes"]
    numbers = torch.cat([boxes, boxes[:, 2:] - boxes[:, :2]], 1)
    both = torch.cat([numbers, batch["region_features"]], 1)
    regions = peer.norm("model.regions.after", peer.linear("model.regions.dense", both))
    words = peer.words(batch["input_ids_masked"], batch["cu_seqlens"], batch["token_types"])
    states = peer.states(joined(words, regions, batch["region_cu_seqlens"]))
    tokens = rows_of(batch, "tokens")
    pooled = peer.bert.pooler(states[tokens[batch["cu_seqlens"][:-1].long()]][:, None])
    logits = peer.linear("objectives.tag_contrast.classifier", pooled)
    return {
        "mmm_text": peer.word_loss(states[tokens[batch["mlm_rows"]]], batch["mlm_labels"]),
        "tag_contrast": F.cross_entropy(logits, batch["contrast_labels"]),
    }


@pytest.mark.parametrize("exact", EXACT, ids=["fp32", "fp64"])
def test_losses_and_gradients_are_those_of_the_published_model(exact, told):
    task = randomize(build_task(tiny_config()), std=0.04).to(exact[0])
    batch = make_batch(((3, 2), (7, 1), (0,), (5, 4)), dtype=exact[0], seed=2)
    check_against(task, batch.having(contrast_labels=torch.tensor([0, 2, 1, 0])), their_losses, exact, told)


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        task = SingleStreamTask(RECIPES["vinvl_base"]())
    counts = [sum(parameter.numel() for parameter in own.parameters()) for own in (task.model, task)]
    assert counts == [111_062_016, 111_686_973]


@pytest.mark.parametrize("reading", ["indexed", "stream"])
def test_captions_and_tags_are_own_or_anothers_as_their_labels_say(reading, tmp_path):
    config = make(tmp_path, "vinvl")
    source = dataclasses.replace(config.data.sources["pair"], reading=reading, global_batch_size=24)
    config = config.with_sources({"pair": source})
    reader = BatchReader(config, open_source(config, "pair"))
    samples = {own.key: own for own in reader.draws().samples(np.arange(24), reader.skips)}
    batch = reader.batch(np.arange(24))
    encode, found = reader.plan.tokenizer.encode_batch, batch["contrast_labels"].tolist()
    for key, ids, label in zip(
        batch.keys, batch["input_ids"].split(batch["cu_seqlens"].diff().tolist()), found, strict=True
    ):
        caption, words = (encode([text], 24)[0] for text in (samples[key].text, tags(int(key))))
        second = ids[len(ids) - len(words) + 1 :].tolist()
        own_caption = ids[: len(caption)].tolist() == caption.tolist()
        own_tags = second == words[1:].tolist()
        assert (own_caption, own_tags) == {0: (True, True), 1: (True, False), 2: (False, True)}[label]
    assert {0, 1, 2} == set(found) and 6 < found.count(0) < 18
    kinds = batch["token_types"].split(batch["cu_seqlens"].diff().tolist())
    assert all(own[0] == 0 and own[-1] == 1 for own in kinds)


def test_shards_without_any_tags_are_refused_while_they_are_contrasted(tmp_path):
    """Otherwise no sample would ever have wrong ones. One with tags is enough."""
    write_regions(tmp_path / "none" / "regions", member=lambda number: save(regions(number)))
    write_regions(tmp_path / "one" / "regions", member=lambda n: member(n) if n == 23 else save(regions(n)))
    config = make(tmp_path / "none", "vinvl")
    with pytest.raises(DataError, match=r"objectives.tag_contrast contrasts .* none of the first 24 samples"):
        look_over(config, {"pair": open_source(config, "pair")})
    words = {"mmm_text": config.objectives["mmm_text"]}
    for fine in (dataclasses.replace(config, objectives=words), make(tmp_path / "one", "vinvl")):
        look_over(fine, {"pair": open_source(fine, "pair")})


def test_shares_above_one_and_models_without_tags_are_refused():
    config = tiny_config()
    with pytest.raises(
        ConfigError, match="wrong_tags_probability 0.8 and wrong_caption_probability 0.25 are"
    ):
        TagContrastConfig(wrong_tags_probability=0.8).check("objectives.x", config)
    with pytest.raises(ConfigError, match="objectives.x needs a model with `tags`"):
        TagContrastConfig().check("objectives.x", Config(name="flava", objectives=OBJECTIVES))
