"""Hard negatives: never a sample's own, drawn by the teacher's similarities, the same in every split."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from flava_ds import config as configuration
from flava_ds.batch import Batch
from flava_ds.errors import ConfigError
from flava_ds.objectives.hard_matching import HardMatchingConfig, HardNegatives, drawn
from flava_ds.recipes import RECIPES

SAMPLES = 6


def step_batches(parts: int, draws: torch.Tensor, temperature: float = 1.0) -> list[Batch]:
    """Samples 1 to 6 as micro-batches: pixels and words are their number n, a text has n + 1 words."""
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(SAMPLES, 5), dim=-1) for _ in range(2))
    size = SAMPLES // parts
    batches = []
    for number in range(parts):
        own = torch.arange(number * size, (number + 1) * size)
        tensors = {
            "pixel_values": (own + 1).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2),
            "input_ids": (own + 1).repeat_interleave(own + 2),
            "cu_seqlens": torch.cat([torch.zeros(1), (own + 2).cumsum(0)]).int(),
            "contrast_images": images,
            "contrast_texts": texts,
            "teacher_temperature": torch.tensor([temperature]),
            "negative_draws": draws[own],
        }
        numbers = {"max_seqlen": int(own.max()) + 2}
        batches.append(Batch(kind="pair", source="x", size=size, tensors=tensors, numbers=numbers))
    return batches


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_split_has_the_same_negatives_and_none_is_a_sample_s_own(parts):
    draws = torch.rand(SAMPLES, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batches = HardNegatives().complete_step(step_batches(parts, draws))
    images = torch.cat([batch["negative_pixel_values"][:, 0, 0, 0].long() for batch in batches])
    texts = [
        text.tolist()
        for batch in batches
        for text in batch["negative_input_ids"].split(batch["negative_cu_seqlens"].diff().tolist())
    ]
    (whole,) = HardNegatives().complete_step(step_batches(1, draws))
    assert images.tolist() == whole["negative_pixel_values"][:, 0, 0, 0].tolist()
    assert [text[0] for text in texts] == [
        text[0].item()
        for text in whole["negative_input_ids"].split(whole["negative_cu_seqlens"].diff().tolist())
    ]
    own = torch.arange(1, SAMPLES + 1)
    assert (images != own).all() and all(text[0] != n for text, n in zip(texts, own.tolist(), strict=True))
    assert all(text == [text[0]] * (text[0] + 1) for text in texts), "whole texts"
    lengths = [batch["negative_cu_seqlens"].diff().max().item() for batch in batches]
    assert [batch.numbers["negative_max_seqlen"] for batch in batches] == lengths


def test_odds_are_the_softmax_of_similarities_without_the_own_one():
    """The shares of a fine grid of draws are the probabilities themselves."""
    grid = torch.arange(0.5, 10_000, dtype=torch.float64) / 10_000
    (batch,) = step_batches(1, torch.zeros(SAMPLES, 2, dtype=torch.float64), temperature=0.2)
    images, texts, own = batch["contrast_images"], batch["contrast_texts"], torch.tensor([2])
    repeated = batch.having(negative_draws=grid[:, None].expand(-1, 2))
    found = drawn(repeated, own.expand(len(grid)), SAMPLES)
    for chosen, scores in zip(found, (texts[own] @ images.T, images[own] @ texts.T), strict=True):
        odds = (scores / 0.2).double()[0]
        odds[2] = float("-inf")
        shares = torch.bincount(chosen, minlength=SAMPLES) / len(grid)
        torch.testing.assert_close(shares.double(), odds.softmax(-1), rtol=0, atol=2e-4)


def test_what_shows_the_same_is_no_negative_unless_all_do():
    grid = torch.rand(SAMPLES, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (batch,) = step_batches(1, grid)
    own, shown = torch.arange(SAMPLES), torch.tensor([5, 5, 5, 5, 9, 9])
    for chosen in drawn(batch.having(contrast_identities=shown), own, SAMPLES):
        assert (shown[chosen] != shown).all()
    for chosen in drawn(batch.having(contrast_identities=torch.full_like(shown, 5)), own, SAMPLES):
        assert (chosen != own).all()


def test_the_last_draw_is_a_sample_too():
    almost = torch.full((SAMPLES, 2), 1 - 2.0**-53, dtype=torch.float64)
    (batch,) = HardNegatives().complete_step(step_batches(1, almost))
    assert batch["negative_pixel_values"][:, 0, 0, 0].tolist()[:5] == [SAMPLES] * 5
    assert batch["negative_pixel_values"][5, 0, 0, 0] == SAMPLES - 1


def test_settings_that_cannot_work_are_one_line():
    config = RECIPES["demo_albef"]()
    for objectives, words in (
        ({"itm": HardMatchingConfig()}, "objectives.itm draws its negatives .* add one"),
        (
            config.objectives | {"itm": HardMatchingConfig(mismatch_probability=0.5)},
            "objectives.itm: two of three pairs never match",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            configuration.check(dataclasses.replace(config, objectives=objectives))
    with pytest.raises(ConfigError, match="needs a model with `hard_negatives`"):
        vilt = RECIPES["demo_vilt"]()
        configuration.check(dataclasses.replace(vilt, objectives={"itm": HardMatchingConfig()}))
