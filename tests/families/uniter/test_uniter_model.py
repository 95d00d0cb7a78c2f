"""UNITER against transformers' BERT on the same embeddings, and its counts of parameters and work."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
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
from sample_batches import denominators
from scipy.optimize import linprog
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config import Config
from flava_ds.families.single_stream.task import SingleStreamTask, build_task
from flava_ds.families.uniter.config import UniterConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_region_features import MaskedRegionFeaturesConfig
from flava_ds.objectives.masked_text import MultimodalMaskedTextConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.recipes import RECIPES

OBJECTIVES = {
    "mmm_text": MultimodalMaskedTextConfig(tied_decoder=True),
    "itm": ImageTextMatchingConfig(),
    "mrfr": MaskedRegionFeaturesConfig(weight=0.5),
    "mrc": MaskedRegionClassesConfig(weight=0.5),
}


def tiny_config(**changed) -> Config:
    objectives = {"objectives": OBJECTIVES} | changed
    return Config(name="tiny", model=UniterConfig(image=IMAGE, text=TEXT), **objectives)


def their_losses(peer: Peer, batch) -> dict[str, torch.Tensor]:
    """The published model and losses, in plain torch around transformers' encoder."""
    boxes, cu = batch["region_boxes"], batch["region_cu_seqlens"]
    edges = boxes[:, 2:] - boxes[:, :2]
    numbers = torch.cat([boxes, edges, edges[:, :1] * edges[:, 1:]], 1)
    hidden = torch.zeros(len(boxes), dtype=torch.bool)
    hidden[batch["region_hidden_rows"]] = True

    def regions(masks: torch.Tensor) -> torch.Tensor:
        features = batch["region_features"].masked_fill(masks[:, None], 0)
        features = features + masks[:, None] * peer["model.mask_embedding.weight"][1]
        content = peer.norm("model.regions.feature_norm", peer.linear("model.regions.features", features))
        place = peer.norm("model.regions.box_norm", peer.linear("model.regions.boxes", numbers))
        kind = peer.bert.embeddings.token_type_embeddings.weight[1]
        return peer.norm("model.regions.norm", content + place + kind)

    def states(ids: str, masks: torch.Tensor, prefix: str = "") -> torch.Tensor:
        words = peer.words(batch[ids], batch[f"{prefix}cu_seqlens"])
        return peer.states(joined(words, regions(masks), cu))

    tokens, seen = rows_of(batch, "tokens"), rows_of(batch, "regions")
    masked = states("input_ids_masked", torch.zeros_like(hidden))[tokens[batch["mlm_rows"]]]
    rows = batch["region_masked_rows"]
    told = states("input_ids", hidden)[seen[rows]]
    matched = states("matching_input_ids", torch.zeros_like(hidden), "matching_")
    first = matched[tokens[batch["matching_cu_seqlens"][:-1].long()]]
    pooled = peer.bert.pooler(first[:, None])
    head = "objectives.mrfr.head"
    back = F.linear(peer.head(head, told), peer["model.regions.features.weight"].t(), peer[f"{head}.bias"])
    return {
        "mmm_text": peer.word_loss(masked, batch["mlm_labels"]),
        "itm": F.cross_entropy(peer.linear("objectives.itm.head", pooled), batch["itm_labels"]),
        "mrfr": F.mse_loss(back, batch["region_features"][rows]),
        "mrc": peer.class_loss(told, batch["region_classes"][rows]),
    }


@pytest.mark.parametrize("exact", EXACT, ids=["fp32", "fp64"])
def test_losses_and_gradients_are_those_of_the_published_model(exact, told):
    task = randomize(build_task(tiny_config()), std=0.04).to(exact[0])
    check_against(task, make_batch(dtype=exact[0], seed=1), their_losses, exact, told)


def test_words_and_regions_are_aligned_by_optimal_transport():
    """Against linear programs over each pair's own words and regions; a text without words costs nothing."""
    config = tiny_config(objectives={"wpa": WordPatchAlignmentConfig(iterations=2000)})
    task, batch = randomize(build_task(config)).double(), make_batch(dtype=torch.float64)
    states = task.model.encode(batch, {"multimodal"})["multimodal"].last_hidden_state().detach()
    states = F.normalize(states, dim=-1)
    lengths, counts = (batch[name].diff().tolist() for name in ("matching_cu_seqlens", "region_cu_seqlens"))
    sequences = states.split([t + o for t, o in zip(lengths, counts, strict=True)])
    expected = []
    for own, t in zip(sequences, lengths, strict=True):
        cost = (1 - own[1 : t - 1] @ own[t:].T).numpy()
        rows, columns = cost.shape
        sides = np.r_[np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
        weights = np.r_[np.full(rows, 1 / max(rows, 1)), np.full(columns, 1 / columns)]
        expected.append(linprog(cost.ravel(), A_eq=sides, b_eq=weights).fun if rows else 0.0)
    signs = 2 * batch["itm_labels"].numpy() - 1
    loss = task.losses(batch)["wpa"]
    assert loss.count == 4 and loss.sum.item() == pytest.approx(signs @ np.array(expected), abs=1e-3)


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        task = SingleStreamTask(RECIPES["uniter_base"]())
    assert sum(parameter.numel() for parameter in task.parameters()) == 112_938_887


def test_closed_form_matches_the_flop_counter():
    config, batch = tiny_config(), make_batch(((6,),) * 6, (5,) * 6)
    task = build_task(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        task("step", batch, denominators(task, batch))
    assert task.flops(batch) / 3 == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_a_mask_hides_what_it_covers_and_nothing_else():
    task = build_task(tiny_config())
    batch = make_batch()
    rows = batch["region_hidden_rows"]
    other = batch.having(region_features=batch["region_features"].index_fill(0, rows, 9.0))

    def state(own, view):
        return task.model.encode(own, {view})[view].last_hidden_state()

    assert torch.equal(state(batch, "regions_masked"), state(other, "regions_masked"))
    assert not torch.allclose(state(batch, "multimodal"), state(other, "multimodal"), atol=1e-3)
    assert dataclasses.replace(tiny_config()).model.shape_of("regions_masked") is task.model.config.text
