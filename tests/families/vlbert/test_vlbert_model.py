"""VL-BERT against transformers' BERT on the same embeddings, over pairs and over texts alone."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from families.bert.bert_peers import randomize
from families.single_stream.single_stream_peers import EXACT, IMAGE, TEXT, Peer, check_against, make_batch

from flava_ds.config import Config
from flava_ds.errors import ConfigError
from flava_ds.families.single_stream.task import SingleStreamTask, build_task
from flava_ds.families.vlbert.config import VlbertConfig
from flava_ds.families.vlbert.model import OF_PAIRS, OF_TEXTS
from flava_ds.layers.regions import sines_of_boxes
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_text import JointMaskedTextConfig
from flava_ds.recipes import RECIPES

OBJECTIVES = {
    "joint_mlm": JointMaskedTextConfig(tied_decoder=True),
    "mrc": MaskedRegionClassesConfig(hidden_share=0.9, loss="cross_entropy"),
}
WORDS = dataclasses.replace(TEXT, type_vocab_size=3)


def tiny_config(**changed) -> Config:
    return Config(
        name="tiny", model=VlbertConfig(image=IMAGE, text=WORDS), **({"objectives": OBJECTIVES} | changed)
    )


def their_losses(peer: Peer, batch) -> dict[str, torch.Tensor]:
    """The published model and losses, sample by sample in plain torch around transformers' encoder."""
    own = {
        name: peer[f"model.{name}.weight"]
        for name in ("region_word", "mask_word", "end", "no_image", "mask_features")
    }
    tables = peer.bert.embeddings
    lengths = batch["cu_seqlens"].diff().tolist()
    texts, kinds = batch["input_ids_masked"].split(lengths), batch["token_types"].split(lengths)
    pairs = "region_boxes" in batch
    counts = batch["region_cu_seqlens"].diff().tolist() if pairs else [0] * len(texts)
    hidden = torch.zeros(sum(counts), dtype=torch.bool)
    if pairs:
        hidden[batch["region_hidden_rows"]] = True
        images = zip(
            batch["region_features"].split(counts),
            batch["region_boxes"].split(counts),
            hidden.split(counts),
            strict=True,
        )
    sequences, words, regions, row = [], [], [], 0
    for ids, types, count in zip(texts, kinds, counts, strict=True):
        visual, linguistic = own["no_image"], own["region_word"].new_empty(0, own["end"].shape[1])
        if pairs:
            features, boxes, masked = next(images)
            seen = features[1:][~masked[1:]]
            first = features[0] if count == 1 else seen.sum(0) / max(len(seen), 1)
            features = torch.where(
                masked[:, None], own["mask_features"], torch.cat([first[None], features[1:]])
            )
            both = torch.cat([sines_of_boxes(boxes).to(features.dtype), features], 1)
            reps = peer.linear("model.regions.dense", both).relu()
            visual = reps[:1]
            linguistic = torch.where(masked[:, None], own["mask_word"], own["region_word"])
            linguistic = linguistic + peer.norm("model.region_norm", reps)
        t, region = len(ids), tables.token_type_embeddings.weight[2]
        spoken = tables.word_embeddings(ids) + peer.norm("model.word_norm", visual)
        spoken = spoken + tables.position_embeddings.weight[:t] + tables.token_type_embeddings(types)
        linguistic = linguistic + tables.position_embeddings.weight[t] + region
        end = own["end"] + tables.position_embeddings.weight[t + 1] + region
        sequences.append(tables.LayerNorm(torch.cat([spoken, linguistic, end])))
        words += range(row, row + t)
        regions += range(row + t, row + t + count)
        row += t + count + 1
    states = peer.states(sequences)
    losses = {
        "joint_mlm": peer.word_loss(states[torch.tensor(words)[batch["mlm_rows"]]], batch["mlm_labels"])
    }
    if pairs:
        told = peer.class_scores(states[torch.tensor(regions)[batch["region_masked_rows"]]])
        targets = batch["region_classes"][batch["region_masked_rows"]]
        losses["mrc"] = F.cross_entropy(told, targets)
    return losses


@pytest.mark.parametrize("exact", EXACT, ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", ["pair", "text"])
def test_losses_and_gradients_are_those_of_the_published_model(kind, exact, told):
    task = randomize(build_task(tiny_config()), std=0.04).to(exact[0])
    batch = make_batch(((3, 2), (7,), (1,), (5, 4)), dtype=exact[0])
    if kind == "text":
        tensors = {name: own for name, own in batch.tensors.items() if "region" not in name}
        batch = dataclasses.replace(batch, kind="text", tensors=tensors)
    check_against(task, batch, their_losses, exact, told)


def test_parameters_are_the_published_ones():
    """Those of the published transformer and embeddings, to which the map of regions and masks come."""
    with torch.device("meta"):
        model = SingleStreamTask(RECIPES["vlbert_base"]()).model
    apart = ("regions.", "region_word.", "mask_word.", "mask_features.", "no_image.")
    counted = sum(own.numel() for name, own in model.named_parameters() if not name.startswith(apart))
    assert counted == 108_896_256
    assert sum(own.numel() for own in model.parameters()) - counted == 4096 * 768 + 768 + 3 * 768 + 2048


def test_words_start_blind_and_masked_regions_stay_hidden():
    """The gains of the visual norms start at 0; no feature of a masked region reaches any state."""
    task, batch = build_task(tiny_config()), make_batch()
    view, rows = "multimodal_masked", batch["region_hidden_rows"]

    def states(own, model):
        return model.encode(own, {view})[view].last_hidden_state()

    other = batch.having(region_features=batch["region_features"].index_fill(0, rows, 9.0))
    everywhere = batch.having(region_features=batch["region_features"] + 1)
    assert torch.equal(states(batch, task.model), states(everywhere, task.model))
    randomize(task, std=0.05)
    assert not torch.allclose(states(batch, task.model), states(everywhere, task.model), atol=1e-4)
    # of a whole image without detections its own features are read, of others the mean of the visible ones
    first = batch["region_cu_seqlens"][:-1].long()[[0, 2, 3]]
    whole = other.having(region_features=other["region_features"].index_fill(0, first, -5.0))
    assert torch.equal(states(batch, task.model), states(whole, task.model))


def test_the_longest_text_leaves_a_position_to_regions_and_one_to_the_end():
    config = tiny_config()
    batch = make_batch(((config.model.max_tokens - 2,),), (3,))
    assert batch.numbers["max_seqlen"] == config.model.max_tokens == TEXT.max_position_embeddings - 2
    assert build_task(config).losses(batch)["joint_mlm"].sum.isfinite()


def test_two_token_types_are_too_few():
    config = dataclasses.replace(tiny_config(), model=VlbertConfig(image=IMAGE, text=TEXT))
    with pytest.raises(ConfigError, match="type_vocab_size is 2; regions need a third token type"):
        config.model.check(config)
    assert {name.partition(".")[0] for name in OF_PAIRS + OF_TEXTS} == {
        "regions", "region_norm", "region_word", "mask_word", "mask_features", "no_image"
    }  # fmt: skip
