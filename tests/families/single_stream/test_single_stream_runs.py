"""The families of one stream through the real trainer, their batches, and the planner."""

import dataclasses

import numpy as np
import pytest
import torch
from data.shard_files import PIECES
from real_runs import check_losses_of_every_split, family_config
from region_files import CLASSES, WIDTH, with_regions, write_regions, write_texts

from flava_ds.config import Config, SourceConfig
from flava_ds.config.checks import check_objectives
from flava_ds.config.encoders import BertTextConfig, RegionsConfig
from flava_ds.data.indexed import IndexedShards
from flava_ds.data.reader import BatchReader
from flava_ds.errors import ConfigError
from flava_ds.families.uniter.config import UniterConfig
from flava_ds.families.vinvl.config import VinvlConfig
from flava_ds.families.visualbert.config import VisualBertConfig
from flava_ds.families.vlbert.config import VlbertConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MultimodalMaskedImageConfig
from flava_ds.objectives.masked_region_classes import MaskedRegionClassesConfig
from flava_ds.objectives.masked_region_features import MaskedRegionFeaturesConfig
from flava_ds.objectives.masked_text import JointMaskedTextConfig, MultimodalMaskedTextConfig
from flava_ds.objectives.next_sentence import SentenceImageConfig
from flava_ds.objectives.tag_contrast import TagContrastConfig
from flava_ds.objectives.word_patch_alignment import WordPatchAlignmentConfig
from flava_ds.scaling.captions import Lengths
from flava_ds.scaling.synthetic import batch_of

SHAPES = {
    "image": RegionsConfig(feature_size=WIDTH, num_classes=CLASSES),
    "text": BertTextConfig(
        vocab_size=200,
        max_position_embeddings=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
        hidden_dropout=0.1,
    ),
}
MASKED = MultimodalMaskedTextConfig(tied_decoder=True)
FAMILIES = {
    "uniter": (
        UniterConfig(**SHAPES),
        {
            "mmm_text": MASKED,
            "itm": ImageTextMatchingConfig(mismatch_probability=0.5),
            "wpa": WordPatchAlignmentConfig(weight=0.1),
            "mrfr": MaskedRegionFeaturesConfig(),
            "mrc": MaskedRegionClassesConfig(),
        },
    ),
    "vinvl": (VinvlConfig(**SHAPES), {"mmm_text": MASKED, "tag_contrast": TagContrastConfig()}),
    "vlbert": (
        VlbertConfig(**SHAPES | {"text": dataclasses.replace(SHAPES["text"], type_vocab_size=3)}),
        {
            "joint_mlm": JointMaskedTextConfig(tied_decoder=True),
            "mrc": MaskedRegionClassesConfig(hidden_share=0.9, loss="cross_entropy"),
        },
    ),
    "visualbert": (VisualBertConfig(**SHAPES), {"mmm_text": MASKED, "sentence_image": SentenceImageConfig()}),
}
"""Tiny models with all of their objectives."""


def make(folder, family: str, name: str = "x", **how):
    """A tiny run of a family over written regions."""
    model, objectives = FAMILIES[family]
    config = family_config(folder, name, "pair", model=model, objectives=objectives, **how)
    shards = folder / "regions"
    source = with_regions(config.data.sources["pair"], shards if shards.is_dir() else write_regions(shards))
    (folder / "words.txt").write_text("\n".join(PIECES) + "\n")
    sources = {"pair": dataclasses.replace(source, max_tokens=24)}
    if "text" in model.kinds:
        texts = SourceConfig(kind="text", seed=7, shards=str(write_texts(folder / "texts")), max_tokens=24)
        sources["text"] = texts
    data = dataclasses.replace(
        config.data,
        sources=sources,
        vocabulary=str(folder / "words.txt"),
    )
    return dataclasses.replace(config, data=data)


@pytest.mark.distributed
def test_ranks_stages_and_accumulation_give_the_same_losses(tmp_path, told):
    stages = dict(zip(FAMILIES, ("zero1", "zero3", "zero2", "zero1"), strict=True))
    runs = [
        (
            make(tmp_path, family, f"{family}-1", accumulation=2),
            [make(tmp_path, family, f"{family}-2", stage=stage)],
        )
        for family, stage in stages.items()
    ]
    check_losses_of_every_split(runs, told, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_the_same_in_any_split_and_the_planner_sees_its_work(family, tmp_path):
    config = make(tmp_path, family)
    reader = BatchReader(config, IndexedShards(config, "pair"))
    whole = reader.batch(np.arange(8))
    parts = [reader.batch(np.arange(start, start + 2)) for start in range(0, 8, 2)]
    for name in whole.tensors:
        if not name.endswith(("rows", "cu_seqlens", "samples")):
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name
    task = config.model.build(config)
    planned = batch_of(reader.plan, "pair", Lengths({9: 1.0, 12: 1.0}, "test"), 6)
    assert planned.tensors.keys() == whole.tensors.keys() and planned.numbers.keys() == whole.numbers.keys()
    for batch in (whole, planned):
        assert sum(part.flops for part in task.passes(batch)) > 0 and task.flops(batch) > 0
        assert all(loss.sum.isfinite() and loss.count for loss in task.losses(batch).values())


def test_masks_of_regions_must_agree(tmp_path):
    config = make(tmp_path, "uniter")
    objectives = config.objectives | {"mrc": MaskedRegionClassesConfig(mask_probability=0.3)}
    with pytest.raises(ConfigError, match=r"mrfr.mask_probability is 0.15 and objectives.mrc.* is 0.3, but"):
        check_objectives(dataclasses.replace(config, objectives=objectives))


@pytest.mark.parametrize(
    ("family", "objective", "message"),
    [
        (
            "vinvl",
            ImageTextMatchingConfig(),
            "objectives.x: the family 'vinvl' reads no second text to match",
        ),
        ("vlbert", ImageTextMatchingConfig(), "objectives.x: the family 'vlbert' reads no second text"),
        ("uniter", MultimodalMaskedImageConfig(), "objectives.x predicts codes .* 'uniter' masks none"),
        ("uniter", SentenceImageConfig(), "objectives.x needs a model with `caption_pairs`"),
        ("uniter", JointMaskedTextConfig(), "objectives.x needs a model with `encode_texts`"),
        ("visualbert", MaskedRegionClassesConfig(), "objectives.x needs a model with `region_rows`"),
        ("visualbert", WordPatchAlignmentConfig(), "objectives.x needs a model with `alignment_rows`"),
    ],
)
def test_objectives_that_a_family_cannot_serve_are_refused(family, objective, message):
    model, _ = FAMILIES[family]
    config = Config(name="x", model=model, objectives={"x": objective})
    with pytest.raises(ConfigError, match=message):
        model.check(config)
        objective.check("objectives.x", config)


def test_images_without_regions_are_refused(tmp_path):
    config = make(tmp_path, "uniter")
    source = dataclasses.replace(config.data.sources["pair"], regions_key=None)
    with pytest.raises(ConfigError, match="reads the regions of images; write them with"):
        config.model.check_regions(config.with_sources({"pair": source}))
