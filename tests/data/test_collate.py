"""The batch contract on hand-made samples."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from flava_ds.config import UNCHANGED
from flava_ds.data.collate import Collator, mismatch
from flava_ds.data.order import sample_seed
from flava_ds.data.samples import Sample
from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import flava_objectives
from flava_ds.families.flava.views import Kind
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig, MultimodalMaskedTextConfig

OFF_ITM = ImageTextMatchingConfig(weight=0.0)
OFF_MMM = {
    "mmm_image": MultimodalMaskedImageConfig(weight=0.0),
    "mmm_text": MultimodalMaskedTextConfig(weight=0.0),
}


def samples(n, texts=None):
    seeds = sample_seed(0, 0, 0, np.arange(n)).tolist()
    images = torch.randint(
        0, 256, (n, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    texts = texts or [f"red cat {i} playing" + " dog" * (i % 3) for i in range(n)]
    return [
        Sample(key=str(i), index=i, seed=seeds[i], image=images[i], text=texts[i], codes=np.full(16, i))
        for i in range(n)
    ]


def borrowed_within(made, probability):
    """Mismatches of samples that are a whole global batch."""
    texts, seeds = (
        [sample.text for sample in made],
        np.array([sample.seed for sample in made], dtype=np.uint64),
    )
    return mismatch([(text,) for text in texts], seeds, probability, in_turn(texts))


def in_turn(texts):
    """Partners as a reader yields them: all other rows in turn, from a drawn one on."""
    others = len(texts) - 1

    def in_order(row, chosen):
        return (texts[(row + 1 + (chosen + turn) % others) % len(texts)] for turn in range(others))

    def partners(rows, draws):
        return [in_order(row, int(draw * others)) for row, draw in zip(rows, draws, strict=True)]

    return partners


def collator_of(config, name):
    """The collator that carries out the family's plan for a source."""
    source = config.data.sources[name]
    return Collator(config.model.plan(config, source), name, source)


def collator(make_config, name, **objectives):
    return collator_of(
        make_config(**({"objectives": flava_objectives(**objectives)} if objectives else {})), name
    )


def test_pair_batches_keep_every_promise_of_the_contract(make_config):
    collate = collator(make_config, "pairs")
    batch = collate(samples(64), {"truncated": 2}, borrowed_within(samples(64), 0.3))
    assert (batch.kind, batch.source, batch.size, batch.read.skipped) == (
        Kind.PAIR,
        "pairs",
        64,
        {"truncated": 2},
    )
    assert batch.keys == tuple(map(str, range(64)))
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((64, 3, 16, 16), torch.uint8)
    assert batch["codebook_pixel_values"].shape == (64, 3, 32, 32)
    assert (batch["bool_masked_pos"].shape, batch["bool_masked_pos"].dtype) == ((64, 16), torch.bool)
    cu = batch["cu_seqlens"]
    assert (cu.dtype, cu[0], cu[-1], len(cu)) == (torch.int32, 0, len(batch["input_ids"]), 65)
    assert (
        batch.numbers["max_seqlen"] == cu.diff().max()
        and batch["input_ids"].dtype == batch["input_ids_masked"].dtype == torch.int64
    )
    starts, ends = cu[:-1].long(), cu[1:].long() - 1
    assert (batch["input_ids"][starts] == collate.plan.tokenizer.cls_id).all() and (
        batch["input_ids"][ends] == collate.plan.tokenizer.sep_id
    ).all()
    assert (batch["input_ids_masked"][starts] == collate.plan.tokenizer.cls_id).all()
    assert torch.equal(batch["mlm_labels"], batch["input_ids"][batch["mlm_rows"]])
    matched = batch["itm_labels"].bool()
    assert torch.equal(batch["matched_rows"], matched.nonzero().flatten()) and 0 < matched.sum() < 64
    sample_of_token = torch.repeat_interleave(torch.arange(64), cu.diff().long())
    assert matched[sample_of_token[batch["mlm_rows"]]].all()
    assert torch.equal(
        batch["mim_rows"], (batch["bool_masked_pos"] & matched[:, None]).flatten().nonzero().flatten()
    )
    changed = (batch["input_ids"] != batch["input_ids_masked"]).nonzero().flatten()
    assert not matched[sample_of_token[changed]].all()


def test_borrowed_captions_take_the_place_of_the_samples_own(make_config):
    collate, made = collator(make_config, "pairs"), samples(6)
    batch = collate(made, borrowed={1: "a blue house", 4: "big dog"})
    ids = [
        batch["input_ids"][a:b].tolist()
        for a, b in zip(batch["cu_seqlens"][:-1], batch["cu_seqlens"][1:], strict=True)
    ]
    texts = [made[0].text, "a blue house", made[2].text, made[3].text, "big dog", made[5].text]
    assert ids == [list(encoded) for encoded in collate.plan.tokenizer.encode_batch(texts, 24)]
    assert batch["itm_labels"].tolist() == [1, 0, 1, 1, 0, 1] and batch["matched_rows"].tolist() == [
        0,
        2,
        3,
        5,
    ]


def test_mismatch_statistics_and_cases_without_a_partner():
    seeds = sample_seed(0, 0, 0, np.arange(3000))
    texts = [f"caption {i % 50}" for i in range(3000)]
    borrowed = mismatch([(text,) for text in texts], seeds, 0.1, in_turn(texts))
    assert abs(len(borrowed) / 3000 - 0.1) < 4 * (0.09 / 3000) ** 0.5
    assert all(text != texts[row] for row, text in borrowed.items())
    assert len(set(borrowed.values())) == 50
    assert mismatch([("same",)] * 5, seeds[:5], 1.0, in_turn(["same"] * 5)) == {}
    assert mismatch(
        [("same",), ("same",), ("other",)], seeds[:3], 1.0, in_turn(["same", "same", "other"])
    ) == {0: "other", 1: "other", 2: "same"}
    assert mismatch([("one",)], seeds[:1], 1.0, lambda rows, draws: [()] * len(rows)) == {}


def test_a_mismatch_is_none_of_the_samples_captions_and_asks_for_drawn_rows_only():
    seeds, asked = sample_seed(0, 0, 0, np.arange(400)), []

    def never_reached():
        yield from ("mine", "also mine", "another's")
        pytest.fail("a partner behind the first that will do was read")

    def partners(rows, draws):
        asked.extend(zip(rows.tolist(), draws.tolist(), strict=True))
        return [never_reached() for _ in rows]

    borrowed = mismatch([("mine", "also mine")] * 400, seeds, 0.1, partners)
    assert (
        set(borrowed.values()) == {"another's"}
        and list(borrowed) == [row for row, _ in asked]
        and 20 < len(asked) < 70
    )
    draws = np.array([draw for _, draw in asked])
    assert 0 <= draws.min() < 0.2 and 0.8 < draws.max() < 1
    assert mismatch([("mine",)] * 400, seeds, 0.0, partners) == {}


def test_a_batch_without_a_match_has_no_rows_to_predict(make_config):
    batch = collator(make_config, "pairs")(samples(6), borrowed={row: "red house" for row in range(6)})
    assert (
        batch["itm_labels"].sum() == 0
        and len(batch["matched_rows"])
        == len(batch["mim_rows"])
        == len(batch["mlm_rows"])
        == len(batch["mlm_labels"])
        == 0
    )
    assert batch["mim_rows"].dtype == batch["mlm_rows"].dtype == batch["matched_rows"].dtype == torch.int64


def test_image_and_text_batches_have_their_own_fields_only(make_config):
    image = collator(make_config, "images")(samples(4))
    assert image.kind == Kind.IMAGE and torch.equal(
        image["mim_rows"], image["bool_masked_pos"].flatten().nonzero().flatten()
    )
    assert all(
        name not in image
        for name in ("input_ids", "input_ids_masked", "cu_seqlens", "mlm_rows", "itm_labels", "matched_rows")
    )
    text = collator(make_config, "text")(samples(4))
    assert text.kind == Kind.TEXT and torch.equal(text["mlm_labels"], text["input_ids"][text["mlm_rows"]])
    assert all(
        name not in text
        for name in (
            "pixel_values",
            "codebook_pixel_values",
            "bool_masked_pos",
            "mim_rows",
            "itm_labels",
            "matched_rows",
        )
    )


def test_masking_follows_the_objectives_that_read_it(make_config):
    contrastive = collator(make_config, "pairs", **OFF_MMM, itm=OFF_ITM)(samples(8))
    for name in (
        "bool_masked_pos",
        "mim_rows",
        "input_ids_masked",
        "mlm_rows",
        "mlm_labels",
        "codebook_pixel_values",
    ):
        assert name not in contrastive
    assert "itm_labels" not in contrastive and len(contrastive["matched_rows"]) == 8
    matching = collator(
        make_config, "pairs", global_contrastive=GlobalContrastiveConfig(weight=0.0), **OFF_MMM
    )(samples(8))
    assert (
        "bool_masked_pos" in matching
        and "input_ids_masked" in matching
        and "codebook_pixel_values" not in matching
    )
    modelling = collator(make_config, "pairs", itm=OFF_ITM)(samples(8))
    assert (
        "bool_masked_pos" in modelling
        and len(modelling["matched_rows"]) == 8
        and "codebook_pixel_values" in modelling
    )
    assert (
        collator(make_config, "images", mim=MaskedImageConfig(weight=0.0))(samples(8)).get("bool_masked_pos")
        is None
    )
    assert (
        collator(make_config, "text", mlm=MaskedTextConfig(weight=0.0))(samples(8)).get("input_ids_masked")
        is None
    )


def test_without_matching_no_caption_is_replaced(make_config):
    assert collator(make_config, "pairs").plan.mismatch_probability == 0.3
    assert collator(make_config, "pairs", itm=OFF_ITM).plan.mismatch_probability == 0.0
    assert collator(make_config, "text").plan.mismatch_probability == 0.0


def test_one_size_serves_both_when_model_and_codebook_agree(make_config):
    config = make_config()
    config = replace(config, codebook=replace(config.codebook, image_size=16))
    batch = collator_of(config, "images")(samples(3))
    assert batch["codebook_pixel_values"] is batch["pixel_values"]


def test_precomputed_codes_are_passed_on(make_config):
    config = make_config()
    source = replace(config.data.sources["images"], image_codes_key="codes.npy", transform=UNCHANGED)
    batch = collator_of(config.with_sources({"images": source}), "images")(samples(3))
    assert (
        batch["image_codes"].tolist() == [[i] * 16 for i in range(3)]
        and batch["image_codes"].dtype == torch.int64
    )
    assert "codebook_pixel_values" not in batch


def test_a_sample_keeps_its_corruption_in_any_batch(make_config):
    collate = collator(make_config, "pairs")
    whole, part = (
        collate(samples(12), borrowed={5: "red dog", 0: "tree"}),
        collate(samples(12)[5:7], borrowed={0: "red dog"}),
    )
    start, end = whole["cu_seqlens"][5], whole["cu_seqlens"][7]
    assert torch.equal(part["input_ids_masked"], whole["input_ids_masked"][start:end])
    assert torch.equal(part["bool_masked_pos"], whole["bool_masked_pos"][5:7]) and torch.equal(
        part["pixel_values"], whole["pixel_values"][5:7]
    )


def test_collators_are_picklable_and_check_the_vocabulary(make_config):
    config = make_config()
    collate = collator_of(config, "pairs")
    again = pickle.loads(pickle.dumps(collate))
    assert torch.equal(again(samples(4))["input_ids_masked"], collate(samples(4))["input_ids_masked"])
    small = replace(config, model=replace(config.model, text=replace(config.model.text, vocab_size=50)))
    with pytest.raises(ConfigError, match="model.text.vocab_size 50 is smaller than"):
        collator_of(small, "pairs")


def test_tokens_beyond_max_tokens_are_counted_in_the_batch(make_config):
    collate = collator(make_config, "text")
    assert collate(samples(2, ["red cat", "red"])).read.cut_tokens == 0
    assert collate(samples(2, ["red cat " * 20, "red"])).read.cut_tokens == 40 - (
        collate.source.max_tokens - 2
    )


def test_a_plan_that_wants_the_samples_seeds_gets_those_of_all(make_config):
    """As signed numbers, and not only of the samples that are masked."""
    collate, drawn = collator(make_config, "pairs"), samples(4)
    assert "sample_seeds" not in collate(drawn)
    collate.plan = replace(collate.plan, sample_seeds=True)
    seeds = collate(drawn, masked_rows=np.array([1, 3]))["sample_seeds"]
    assert seeds.dtype == torch.int64 and [seed % 2**64 for seed in seeds.tolist()] == [s.seed for s in drawn]
