"""The configuration tree: JSON in and out, strictness, and every cross-field check."""

import dataclasses
import json

import pytest

from flava_ds import config as configuration
from flava_ds.config import (
    UNCHANGED,
    CodebookConfig,
    Config,
    DataConfig,
    EngineConfig,
    ImageTransformConfig,
    SourceConfig,
    TrainingConfig,
    check,
    did_you_mean,
    from_dict,
    load,
    save,
    to_dict,
)
from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.config.schedules import CosineScheduleConfig
from flava_ds.errors import ConfigError
from flava_ds.families.flava.config import (
    FlavaConfig,
    FlavaTextConfig,
    MultimodalEncoderConfig,
    flava_objectives,
)
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.objectives.masked_image import MaskedImageConfig, MultimodalMaskedImageConfig
from flava_ds.objectives.masked_text import MaskedTextConfig
from flava_ds.optimizers.adamw import AdamWConfig

PAIR = SourceConfig(kind="pair", shards="somewhere")
TEXT = SourceConfig(kind="text", shards="elsewhere", global_batch_size=48)
BOTH = {"pair": PAIR, "text": TEXT}


def a_config(**changes) -> Config:
    """Returns a configuration with two sources."""
    defaults = {"name": "run", "objectives": flava_objectives(), "data": DataConfig(sources=BOTH)}
    return Config(**{**defaults, "training": TrainingConfig(global_batch_size=96), **changes})


def cropped(**transform) -> SourceConfig:
    """Returns the source of pairs with another augmentation."""
    return dataclasses.replace(PAIR, transform=ImageTransformConfig(**transform))


def test_json_rebuilds_the_run(tmp_path):
    config = check(a_config(seed=3, codebook_weights="codes.safetensors"))
    save(config, tmp_path / "config.json")
    assert load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.pop("name"), "key 'name' is missing; it has no default"),
        (lambda data: data["data"]["sources"]["pair"].pop("kind"), "key 'data.sources.pair.kind' is missing"),
        (lambda data: data.update(model=3), "model is 3; expected an object with the fields of FamilyConfig"),
        (
            lambda data: data["data"].update(sources=[{"kind": "pair"}]),
            "data.sources is [{'kind': 'pair'}]; expected an object",
        ),
        (
            lambda data: data["data"]["sources"].update({"a/b": {"kind": "pair", "shards": "x"}}),
            "data.sources: 'a/b' cannot name a source",
        ),
        (
            lambda data: data["training"].update(total_stps=3),
            "unknown key 'training.total_stps'; did you mean 'total_steps'?",
        ),
        (
            lambda data: data["data"]["sources"]["text"].update(shard="x"),
            "unknown key 'data.sources.text.shard'; did you mean 'shards'?",
        ),
        (
            lambda data: data["data"].update(kind_weights={"pair": "most"}),
            "data.kind_weights.pair is 'most'; expected float",
        ),
        (
            lambda data: data["training"].update(precision="fp8"),
            "training.precision is 'fp8'; choose one of 'fp32', 'bf16', 'fp16'",
        ),
        (lambda data: data["training"].update(total_steps="3"), "training.total_steps is '3'; expected int"),
        (lambda data: data["training"].update(total_steps=3.5), "training.total_steps is 3.5; expected int"),
        (lambda data: data["optimizer"].update(lr="fast"), "optimizer.lr is 'fast'; expected float"),
        (lambda data: data["data"].update(shuffle=1), "data.shuffle is 1; expected bool"),
    ],
)
def test_load_is_strict_and_names_file_and_key(tmp_path, edit, message):
    data = to_dict(a_config())
    edit(data)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_broken_json_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    for content in (b"{", b"[]", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="config.json"):
            load(path)


def test_numbers_keep_their_type():
    data = to_dict(a_config())
    data["optimizer"]["lr"] = 1
    rebuilt = from_dict(Config, data)
    assert rebuilt.optimizer.lr == 1.0 and isinstance(rebuilt.optimizer.lr, float)
    assert isinstance(rebuilt.optimizer.betas, tuple) and rebuilt.data.sources == BOTH


def test_micro_batch_divides_over_ranks_and_accumulation():
    config = a_config(training=TrainingConfig(global_batch_size=96, gradient_accumulation_steps=2))
    assert config.micro_batch_size("pair", world_size=4) == 12
    assert config.micro_batch_size("text", world_size=4) == 6
    with pytest.raises(
        ConfigError,
        match="48 is not divisible by 5 ranks x 2 .*--data.sources.text.global-batch-size to a multiple of 1",
    ):
        config.micro_batch_size("text", world_size=5)


def test_run_path_is_directory_and_name():
    assert str(a_config().run_path) == "runs/run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(hidden_size=770))},
            "model.image: hidden_size 770 is not divisible by num_attention_heads 12",
        ),
        (
            {"model": FlavaConfig(text=FlavaTextConfig(num_attention_heads=7))},
            "model.text: hidden_size 768 is not divisible by num_attention_heads 7",
        ),
        (
            {"model": FlavaConfig(multimodal=MultimodalEncoderConfig(num_attention_heads=5))},
            "model.multimodal: hidden_size 768",
        ),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(patch_size=15))},
            "image_size 224 is not divisible by patch_size 15",
        ),
        ({"codebook": CodebookConfig(image_size=224)}, "use codebook.image_size 112"),
        (
            {"schedule": CosineScheduleConfig(warmup_steps=10), "training": TrainingConfig(total_steps=5)},
            "schedule.warmup_steps 10 exceeds training.total_steps 5",
        ),
        (
            {"training": TrainingConfig(global_batch_size=0)},
            "training.global_batch_size is 0; it must be at least 1",
        ),
        (
            {"training": TrainingConfig(gradient_accumulation_steps=0)},
            "training.gradient_accumulation_steps is 0",
        ),
        (
            {"training": TrainingConfig(gradient_clipping=-1.0)},
            "training.gradient_clipping is -1; it must be at least 0",
        ),
        ({"optimizer": AdamWConfig(lr=-1.0)}, "optimizer.lr is -1; it must be at least 0"),
        (
            {"data": DataConfig(sources={"pair": PAIR}, num_workers=-1)},
            "data.num_workers is -1; it must be at least 0",
        ),
        (
            {"objectives": flava_objectives(mlm=MaskedTextConfig(mask_probability=2.0))},
            "objectives.mlm.mask_probability is 2; it must lie between 0 and 1",
        ),
        (
            {"objectives": flava_objectives(itm=ImageTextMatchingConfig(weight=-0.5))},
            "objectives.itm.weight is -0.5; it must be at least 0",
        ),
        (
            {"data": DataConfig(sources={"text": dataclasses.replace(TEXT, masked_share=0.5)})},
            "masked_share 0.5 only applies to pairs; text batches are masked as a whole",
        ),
        (
            {"data": DataConfig(sources={"pair": dataclasses.replace(PAIR, masked_share=0.0)})},
            "sources.pair.masked_share is 0; it must be above 0",
        ),
        ({"data": DataConfig(sources={"pair": PAIR}, block_steps=0)}, "data.block_steps is 0"),
        (
            {"data": DataConfig(sources={"pair": dataclasses.replace(PAIR, weight=-1.0)})},
            "data.sources.pair.weight is -1; it must be at least 0",
        ),
        (
            {"data": DataConfig(sources={"text": dataclasses.replace(TEXT, max_tokens=513)})},
            "max_tokens 513 must lie between 3 and",
        ),
        (
            {"data": DataConfig(sources={"text": dataclasses.replace(TEXT, max_tokens=2)})},
            "max_tokens 2 must lie between 3 and",
        ),
        (
            {"data": DataConfig(sources={"pair": dataclasses.replace(PAIR, image_codes_key="codes.npy")})},
            "precomputed image codes need a transform that changes nothing",
        ),
        ({"optimizer": AdamWConfig(lr=float("nan"))}, "optimizer.lr is nan; it must be at least 0"),
        ({"optimizer": AdamWConfig(lr=float("inf"))}, "optimizer.lr is inf; it must be at most 10"),
        (
            {"optimizer": AdamWConfig(betas=(0.9, 1.0))},
            "optimizer.betas is (0.9, 1.0); each must be at least 0 and below 1",
        ),
        (
            {"training": TrainingConfig(stop_on_nonfinite=0)},
            "training.stop_on_nonfinite is 0; it must be at least 1",
        ),
        (
            {"engine": EngineConfig(communication_timeout_s=0)},
            "engine.communication_timeout_s is 0; it must be at least 1",
        ),
        ({"seed": 2**32}, "seed is 4294967296; it must be below 2**32"),
        ({"name": ""}, "name is ''; give the name of the run's folder"),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(patch_size=0))},
            "model.image.patch_size is 0; it must be at least 1",
        ),
        (
            {"model": FlavaConfig(text=FlavaTextConfig(num_attention_heads=0))},
            "model.text.num_attention_heads is 0; it must be at least 1",
        ),
        (
            {"model": FlavaConfig(multimodal=MultimodalEncoderConfig(num_hidden_layers=0))},
            "model.multimodal.num_hidden_layers is 0; it must be at least 1",
        ),
        ({"model": FlavaConfig(projection_dim=0)}, "model.projection_dim is 0; it must be at least 1"),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(layer_norm_eps=-1e-6))},
            "model.image.layer_norm_eps is -1e-06; it must be at least 0",
        ),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(num_channels=1))},
            "model.image.num_channels is 1; images are read as RGB, so it must be 3",
        ),
        (
            {"model": FlavaConfig(image=VisionEncoderConfig(image_std=(1.0, 0.0, 1.0)))},
            "model.image.image_std is (1.0, 0.0, 1.0); each must be above 0",
        ),
        (
            {"model": FlavaConfig(text=FlavaTextConfig(pad_token_id=30522))},
            "model.text.pad_token_id 30522 is none of model.text.vocab_size 30522 entries",
        ),
        ({"codebook": CodebookConfig(image_size=113)}, "use codebook.image_size 112"),
        (
            {"objectives": flava_objectives(mim=MaskedImageConfig(num_masked_patches=0))},
            "objectives.mim.num_masked_patches is 0; it must be at least 1",
        ),
        (
            {"objectives": flava_objectives(mim=MaskedImageConfig(num_masked_patches=1000))},
            "objectives.mim: num_masked_patches 1000 is more than the 196 patches of a picture; set",
        ),
        (
            {"objectives": flava_objectives(mim=MaskedImageConfig(num_masked_patches=8))},
            "objectives.mim: a block of min_patches_per_block 16 does not fit",
        ),
        (
            {"objectives": flava_objectives(mmm_image=MultimodalMaskedImageConfig(min_aspect_ratio=0.0))},
            "objectives.mmm_image.min_aspect_ratio is 0; it must be above 0",
        ),
        (
            {"objectives": flava_objectives(mlm=MaskedTextConfig(random_token_share=0.3))},
            "objectives.mlm: mask_token_share 0.8 and random_token_share 0.3 are more",
        ),
        *(
            (
                {"objectives": {name: MaskedTextConfig()}},
                f"objectives: '{name}' cannot name an objective; use",
            )
            for name in ("", "x.y", "a/b", "-a")
        ),
        (
            {"objectives": {"a_b": MaskedTextConfig(), "a-b": MaskedTextConfig()}},
            "objectives: 'a_b' and 'a-b' differ only in '_' and '-'",
        ),
        (
            {"objectives": flava_objectives(other=MaskedTextConfig(mask_probability=0.3))},
            "objectives.mlm.mask_probability is 0.15 and objectives.other.mask_probability is 0.3, but both",
        ),
        (
            {"data": DataConfig(sources={"pair": dataclasses.replace(PAIR, max_skipped_share=-1.0)})},
            "data.sources.pair.max_skipped_share is -1; it must lie between 0 and 1",
        ),
        (
            {"data": DataConfig(sources={"pair": cropped(crop_scale=(2.0, 3.0))})},
            "data.sources.pair.transform.crop_scale is (2.0, 3.0); each must be above 0 and at most 1",
        ),
        (
            {"data": DataConfig(sources={"pair": cropped(crop_ratio=(2.0, 1.0))})},
            "source 'pair': transform.crop_ratio (2.0, 1.0): give the smallest width",
        ),
        (
            {"data": DataConfig(sources={"pair": cropped(invert=2.0)})},
            "data.sources.pair.transform.invert is 2; it must lie between 0 and 1",
        ),
    ],
)
def test_cross_field_checks(changes, message):
    with pytest.raises(ConfigError) as caught:
        check(a_config(**changes))
    assert message in str(caught.value)


def test_precomputed_codes_are_accepted_with_an_unchanging_transform():
    source = dataclasses.replace(PAIR, image_codes_key="codes.npy", transform=UNCHANGED)
    assert check(a_config(data=DataConfig(sources={"pair": source}))).data.sources["pair"] == source


def test_what_changes_an_image_of_precomputed_codes_is_named_and_nothing_else():
    """The probability of a jitter that is none, and the width of a blur that is none, change nothing."""
    inert = dataclasses.replace(UNCHANGED, jitter_probability=0.0, blur_sigma=(0.5, 1.0))
    source = dataclasses.replace(PAIR, image_codes_key="codes.npy", transform=inert)
    check(a_config(data=DataConfig(sources={"pair": source})))
    changed = dataclasses.replace(inert, crop_scale=(0.9, 1.0), hue=0.1)
    with pytest.raises(ConfigError) as caught:
        check(a_config(data=DataConfig(sources={"pair": dataclasses.replace(source, transform=changed)})))
    option = "--data.sources.pair.transform"
    assert str(caught.value).endswith(f"; set {option}.crop-scale 1 1 {option}.hue 0")


def test_codebook_grid_is_free_when_nothing_predicts_codes():
    config = a_config(codebook=CodebookConfig(image_size=224))
    assert check(dataclasses.replace(config, objectives=off("mim", "mmm_image"))).codebook.image_size == 224


def test_suggestion_is_empty_when_nothing_is_near():
    assert did_you_mean("total_stps", ["total_steps"]) == "; did you mean 'total_steps'?"
    assert did_you_mean("xyz", ["total_steps"]) == ""


def test_every_section_is_frozen_and_keyword_only():
    for kind in vars(configuration).values():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, kind
            assert all(field.kw_only for field in dataclasses.fields(kind)), kind


def off(*names: str) -> dict:
    """Returns the objectives with the weights of some at 0."""
    return flava_objectives(
        **{name: dataclasses.replace(flava_objectives()[name], weight=0.0) for name in names}
    )


def test_a_source_that_no_objective_reads_is_refused():
    """Its first step would have no loss."""
    with pytest.raises(
        ConfigError,
        match=(
            r"'text': nothing reads its text batches, because objectives.mlm.weight is 0; .* "
            r"--data.sources.text.weight 0"
        ),
    ):
        check(a_config(objectives=off("mlm")))
    rests = dataclasses.replace(TEXT, weight=0.0)
    assert check(a_config(objectives=off("mlm"), data=DataConfig(sources={"pair": PAIR, "text": rests})))
    assert check(
        a_config(
            objectives=off("mlm"), data=DataConfig(sources=BOTH, kind_weights={"pair": 1.0, "text": 0.0})
        )
    )
    readers = [name for name, own in flava_objectives().items() if "pair" in own.kinds]
    assert check(a_config(objectives=off(*readers[1:])))
    with pytest.raises(
        ConfigError,
        match=(
            "source 'pair': nothing reads its pair batches, because .*objectives.itm.weight are 0; raise one"
        ),
    ):
        check(a_config(objectives=off(*readers)))


def test_a_masked_share_that_leaves_none_to_mask_is_refused():
    source = dataclasses.replace(PAIR, global_batch_size=8, masked_share=0.25)
    config = a_config(data=DataConfig(sources={"pair": source}))
    assert config.micro_batch_size("pair", 2) == 4
    with pytest.raises(ConfigError, match="leaves none to mask"):
        config.micro_batch_size("pair", 4)
