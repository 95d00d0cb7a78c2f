"""flava_large is flava_base at torchmultimodal's 900m shape and differs in nothing else that trains."""

from flava_ds.recipes.flava_base import flava_base
from flava_ds.recipes.flava_large import flava_large


def test_shape_is_the_900m_preset():
    model = flava_large().model
    encoders = (model.image, model.text, model.multimodal)
    assert [encoder.num_hidden_layers for encoder in encoders] == [24, 24, 12]
    assert {
        (encoder.hidden_size, encoder.num_attention_heads, encoder.intermediate_size) for encoder in encoders
    } == {(1024, 16, 4096)}


def test_training_is_that_of_flava_base():
    large, base = flava_large(), flava_base()
    assert (large.data, large.objectives, large.optimizer, large.schedule) == (
        base.data,
        base.objectives,
        base.optimizer,
        base.schedule,
    )
    assert (
        large.training.activation_checkpointing
        and large.engine.deepspeed_config != base.engine.deepspeed_config
    )
