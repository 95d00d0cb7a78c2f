"""Both ways to begin FLAVA's training: what the image stage passes on fits the joint run and is all of it."""

import dataclasses

import pytest

from flava_ds.commands.stages import check_shapes, shapes_of
from flava_ds.recipes import load_sequence
from flava_ds.recipes.mim_base import mim_base
from flava_ds.recipes.stages import resolve_stages


@pytest.mark.parametrize(
    ("name", "objective", "heads"),
    [("flava_base_full", "dino", {"mlm"}), ("flava_base_full/mim", "mim", {"mim", "mlm"})],
)
def test_the_joint_run_begins_with_whole_encoders_and_the_heads_that_it_has_too(name, objective, heads):
    sequence = resolve_stages(load_sequence(name), [])
    image, text, joint = sequence.stages
    assert set(image.config.objectives) == {objective} and set(text.config.objectives) == {"mlm"}
    assert [stage.config.name for stage in sequence.stages] == [
        f"{sequence.name}/{s}" for s in sequence.names
    ]
    check_shapes(sequence)
    given = tuple(prefix for inherited in joint.inherits for prefix in inherited.prefixes)
    begun = {name.split(".")[1] for name in shapes_of(joint.config) if name.startswith(given)}
    assert begun == {"image_encoder", "text_encoder", *heads}
    assert image.config.model.image == joint.config.model.image
    assert image.config.model.text != joint.config.model.text == text.config.model.text
    shared = [
        dataclasses.replace(config.objectives["mim"], weight=1.0) for config in (mim_base(), joint.config)
    ]
    assert shared[0] == shared[1] and mim_base().codebook == joint.config.codebook


def test_with_released_weights_there_is_no_image_stage():
    text, joint = resolve_stages(load_sequence("flava_base_full/released"), []).stages
    assert (text.name, joint.name) == ("text", "joint") and len(joint.inherits) == 1
    assert joint.config.model == load_sequence("flava_base_full").stages[2].config.model


def test_mim_has_the_numbers_of_the_published_command():
    config = mim_base()
    masking, transform = config.objectives["mim"], config.data.sources["imagenet"].transform
    assert (masking.num_masked_patches, masking.min_patches_per_block) == (75, 16)
    assert (config.training.total_steps, config.training.global_batch_size) == (500_000, 2048)
    assert (config.schedule.warmup_steps, config.schedule.min_lr) == (6250, 1e-5)
    assert (config.optimizer.lr, config.optimizer.betas) == (1.5e-3, (0.9, 0.98))
    assert (config.optimizer.weight_decay, config.optimizer.weight_decay_end) == (0.05, None)
    assert (config.training.gradient_clipping, config.training.clip_each_parameter) == (3.0, False)
    assert (transform.crop_scale, transform.horizontal_flip) == ((0.08, 1.0), 0.5)
    assert config.model.image.image_mean == (0.485, 0.456, 0.406)
