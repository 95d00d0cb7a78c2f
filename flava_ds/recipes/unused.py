"""Encoders as small as they can be, for stages that train one of the others."""

from flava_ds.config.encoders import VisionEncoderConfig
from flava_ds.families.flava.config import FlavaTextConfig, MultimodalEncoderConfig

ONE_BLOCK = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}

SMALLEST_IMAGE = VisionEncoderConfig(**ONE_BLOCK)
SMALLEST_TEXT = FlavaTextConfig(**ONE_BLOCK)
SMALLEST_MULTIMODAL = MultimodalEncoderConfig(**ONE_BLOCK)
