"""Encoders as small as they can be, for stages that train one of the others."""

from flava_ds.config.encoders import Shape, VisionEncoderConfig
from flava_ds.families.flava.config import FlavaTextConfig, MultimodalEncoderConfig

SHAPE = Shape(hidden_size=8, num_attention_heads=1, intermediate_size=8)

SMALLEST_IMAGE = VisionEncoderConfig(num_hidden_layers=1, **SHAPE)
SMALLEST_TEXT = FlavaTextConfig(num_hidden_layers=1, **SHAPE)
SMALLEST_MULTIMODAL = MultimodalEncoderConfig(num_hidden_layers=1, **SHAPE)
